"""Every CUDA op against its plain torch meaning, on fresh random inputs and poisoned outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.gpu

cuda = torch.device("cuda")


@pytest.fixture(scope="module")
def ops():
    from appliance.kernels.cuda_ops import CudaOps

    return CudaOps(cuda)


@pytest.fixture(scope="module")
def plain():
    from appliance.kernels.torch_ops import TorchOps

    return TorchOps()


def relative(out: torch.Tensor, ref: torch.Tensor) -> float:
    out, ref = out.double(), ref.double()
    return float((out - ref).norm() / ref.norm())


@pytest.mark.parametrize("tokens", [1, 7, 300])
@pytest.mark.parametrize("width", [4096, 256])
def test_norms(ops, plain, tokens, width):
    x = torch.randn(tokens, width, device=cuda, dtype=torch.bfloat16)
    residual = torch.randn_like(x)
    weight = torch.rand(width, device=cuda, dtype=torch.bfloat16) + 0.5
    want = plain.rms_norm(x.float(), weight.float(), 1e-5)
    assert relative(ops.rms_norm(x, weight, 1e-5), want) < 1e-2
    normed, total = ops.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    want_normed, want_total = plain.add_rms_norm(x.float(), residual.float(), weight.float(), 1e-5)
    assert relative(total, want_total) < 1e-2
    assert relative(normed, want_normed) < 1e-2


@pytest.mark.parametrize("tokens", [1, 33])
def test_silu_and_mul(ops, plain, tokens):
    x = torch.randn(tokens, 2 * 1408, device=cuda, dtype=torch.bfloat16)
    assert relative(ops.silu_and_mul(x), plain.silu_and_mul(x.float())) < 1e-2


@pytest.mark.parametrize("heads,kv_heads,size", [(32, 8, 128), (4, 2, 64), (16, 16, 128)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("tokens", [1, 65])
def test_rope_store(ops, plain, heads, kv_heads, size, norm, tokens):
    pages, page = 40, 16
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * size, device=cuda, dtype=torch.bfloat16)
    positions = torch.randint(0, 500, (tokens,), device=cuda)
    table = torch.randn(500, size, device=cuda)
    rows = torch.randperm(pages * page, device=cuda)[:tokens]
    weights = [torch.rand(size, device=cuda, dtype=torch.bfloat16) + 0.5 for _ in range(2)]
    q_weight, k_weight = weights if norm else (None, None)
    got, want = [], []
    for maker, dtype, into in ((ops, torch.bfloat16, got), (plain, torch.float32, want)):
        k = torch.full((pages, page, kv_heads, size), 7.0, device=cuda, dtype=dtype)
        v = torch.full_like(k, 7.0)
        weight = [w.to(dtype) if w is not None else None for w in (q_weight, k_weight)]
        q = maker.rope_store(
            qkv.to(dtype), positions, table, k, v, rows, weight[0], weight[1], 1e-6
        )
        into += [q, k, v]
    for out, ref in zip(got, want, strict=True):
        assert relative(out, ref) < 1e-2
    untouched = torch.ones(pages * page, dtype=torch.bool, device=cuda)
    untouched[rows] = False
    assert (got[1].flatten(0, 1)[untouched] == 7.0).all()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("norm", [False, True])
def test_rope_store_in_8_bits(ops, plain, dtype, norm):
    heads, kv_heads, size, tokens, pages, page = 32, 8, 128, 65, 40, 16
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * size, device=cuda, dtype=torch.bfloat16)
    qkv[0] *= 1e5
    positions = torch.randint(0, 500, (tokens,), device=cuda)
    table = torch.randn(500, size, device=cuda)
    rows = torch.randperm(pages * page, device=cuda)[:tokens]
    weights = [torch.rand(size, device=cuda, dtype=torch.bfloat16) + 0.5 for _ in range(2)]
    found = []
    for maker, wide in ((ops, torch.bfloat16), (plain, torch.float32)):
        k = torch.full((pages, page, kv_heads, size), 7.0, device=cuda).to(dtype)
        v = k.clone()
        own = [w.to(wide) for w in weights] if norm else [None, None]
        maker.rope_store(qkv.to(wide), positions, table, k, v, rows, *own, 1e-6, 0.03, 0.7)
        found.append((k.float(), v.float()))
    for out, ref in zip(*found, strict=True):
        assert torch.isfinite(out).all()
        # a value on a border of the format may fall to either side
        assert relative(out, ref) < 2e-2
        assert (out != ref).float().mean() < 0.02


def test_page_tables(ops, plain):
    tables = [torch.zeros(50, 64, dtype=torch.int32, device=cuda) for _ in range(2)]
    places = torch.randperm(50 * 64, device=cuda)[:700]
    slots, columns = (places // 64).int(), (places % 64).int()
    pages = torch.randint(1, 9999, (700,), device=cuda, dtype=torch.int32)
    ops.write_pages(tables[0], slots, columns, pages)
    plain.write_pages(tables[1], slots, columns, pages)
    assert torch.equal(*tables)


def test_row_inputs(ops):
    page, rows, width = 16, 37, 300
    table = torch.randint(1, 9999, (64, width), device=cuda, dtype=torch.int32)
    last = torch.randint(0, 1000, (64,), device=cuda, dtype=torch.int32)
    slots = torch.randperm(64, device=cuda)[:rows].int()
    starts = torch.randint(0, width * page, (rows,), device=cuda, dtype=torch.int32)
    counts = (starts // page + 1).cpu().numpy()
    indptr = torch.from_numpy(np.concatenate(([0], np.cumsum(counts))).astype(np.int32)).to(cuda)
    longs = [torch.full((rows,), -1, dtype=torch.int64, device=cuda) for _ in range(3)]
    last_len = torch.full((rows,), -1, dtype=torch.int32, device=cuda)
    indices = torch.full((int(counts.sum()),), -1, dtype=torch.int32, device=cuda)
    ops.row_inputs(slots, starts, indptr, table, last, *longs, last_len, indices, page)
    at = starts.long()
    own = table[slots.long()]
    assert torch.equal(longs[0], last[slots.long()].long())
    assert torch.equal(longs[1], at)
    page_of = own.gather(1, (at // page)[:, None])[:, 0].long()
    assert torch.equal(longs[2], page_of * page + at % page)
    assert torch.equal(last_len.long(), at % page + 1)
    assert torch.equal(indices, torch.cat([own[r, : counts[r]] for r in range(rows)]))
    again = torch.full_like(indices, -1)
    ops.flatten_pages(table, slots, indptr, again)
    assert torch.equal(indices, again)


@pytest.mark.parametrize("vocab", [100, 4096, 128256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gumbel_argmax_is_the_same_function(ops, plain, vocab, dtype):
    rows = 16
    logits = (torch.randn(rows, vocab, device=cuda) * 2).to(dtype)
    temperature = torch.rand(rows, device=cuda) + 0.5
    seeds = torch.randint(0, 1 << 62, (rows,), device=cuda)
    counters = torch.randint(0, 5000, (rows,), device=cuda, dtype=torch.int32)
    got = ops.gumbel_argmax(logits, temperature, seeds, counters)
    want = plain.gumbel_argmax(logits, temperature, seeds, counters)
    # logarithms differ in the last bit between the two; a tie within that bit may go either way
    assert (got == want).float().mean() > 0.9
    noise = torch.zeros(rows, device=cuda)
    from appliance.kernels.chains import gumbel_noise

    full = logits.float() / temperature[:, None] + gumbel_noise(seeds, counters, vocab)
    noise = full.gather(1, got[:, None])[:, 0]
    assert torch.allclose(noise, full.max(1).values, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 7, 130, 1000])
@pytest.mark.parametrize("vocab", [300, 151936, 128256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_first_largest(ops, plain, rows, vocab, dtype):
    """bfloat16 has few values, so that rows of this length have ties for the largest."""
    x = torch.randn(rows, vocab, device=cuda).to(dtype)
    assert torch.equal(ops.first_largest(x, -7), plain.first_largest(x, -7))
    at = torch.arange(rows, device=cuda)
    x[at % 5 == 0, vocab // 2] = torch.nan
    x[at % 5 == 1, vocab - 1] = torch.inf
    x[at % 5 == 2] = -torch.inf
    x[at % 5 == 3] = 0.5
    got = ops.first_largest(x, -7)
    assert torch.equal(got, plain.first_largest(x, -7))
    assert (got[at % 5 < 3] == -7).all() and (got[at % 5 == 3] == 0).all()


def test_first_largest_is_captured(ops):
    x = torch.randn(3, 128256, device=cuda, dtype=torch.bfloat16)
    ops.first_largest(x, -7)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ops.first_largest(x, -7)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(got, x.argmax(-1))


@pytest.mark.parametrize("vocab", [300, 4096, 128256])
@pytest.mark.parametrize("kind", ["normal", "peaked", "ties", "masked"])
def test_the_search_keeps_what_sorting_keeps(plain, vocab, kind):
    from appliance.kernels.cuda_ops import CudaOps

    asked = [(0, 0.9, 0.0), (0, 0.1, 0.0), (1, 1.0, 0.0), (50, 1.0, 0.0), (vocab - 1, 0.999, 0.0),
             (0, 1.0, 0.05), (50, 0.95, 0.02)] * 20  # fmt: skip
    x = torch.randn(len(asked) + 3, vocab, device=cuda) * 3
    if kind == "peaked":
        x[:, 7] += 30
    elif kind == "ties":
        x = (x * 2).round() / 2
    elif kind == "masked":
        x[:, 20:] = -torch.inf
    k = torch.tensor([n or vocab for n, _, _ in asked], device=cuda, dtype=torch.int32)
    p, m = (torch.tensor([a[i] for a in asked], device=cuda) for i in (1, 2))
    at = torch.randperm(len(x), device=cuda)[: len(asked)].int()
    got = CudaOps(cuda, search=True).keep_likely(x.clone(), at, k, p, m)
    want = plain.keep_likely(x.clone(), at, k, p, m)
    again = CudaOps(cuda, search=True).keep_likely(x.clone(), at, k, p, m)
    assert torch.equal(got, again)
    differs = (got > -torch.inf) != (want > -torch.inf)
    # sums in another order: what stands on the border of the mass may fall either way
    assert float((x.double().softmax(-1) * differs).sum(-1).max()) < 1e-4
    exact = [i for i, a in enumerate(asked) if a[1] == 1.0]
    assert not differs[at[exact].long()].any()


# the shape that FlashInfer's prebuilt kernels are of; another is compiled for a minute, so one test
# each has 8 bits of the other format, and windows
HEADS, KV_HEADS, SIZE = 32, 8, 128
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.mark.parametrize(
    "prefill,decode,kv_dtype,heads",
    [
        *((*rows, torch.bfloat16, HEADS) for rows in ((0, 1), (0, 33), (3, 0), (2, 17))),
        # groups of 5, 6 and 7, which decode kernels of FlashInfer do not know
        *((0, 33, torch.bfloat16, group * KV_HEADS) for group in (5, 6, 7)),
        *((*rows, E4M3, HEADS) for rows in ((0, 1), (0, 33), (3, 0), (2, 17))),
        pytest.param(2, 17, E5M2, HEADS, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("even", [True, False])
def test_paged_backend_against_the_reference(ops, prefill, decode, kv_dtype, heads, even):
    from appliance.kernels.ops import Turns
    from appliance.kernels.paged_attention import Shape
    from appliance.runtime.model.attention.paged import PagedBackend, own_decode
    from appliance.runtime.model.attention.reference import ReferenceBackend
    from appliance.runtime.model.batch import UNSCALED, Batch, KVPages, KVScales

    if even and (kv_dtype is E5M2 or not decode):
        pytest.skip("FlashInfer's part")
    kv_heads, size = KV_HEADS, SIZE
    rng = np.random.default_rng(prefill * 100 + decode)
    page, columns, rows = 16, 40, prefill + decode
    count = 64 * columns
    table = torch.from_numpy(
        (rng.permutation(count)[: (rows + 1) * columns] + 1).reshape(rows + 1, columns)
    ).to(cuda, torch.int32)
    lengths = np.ones(rows, dtype=np.int32)
    lengths[:prefill] = rng.integers(2, 200, prefill)
    starts = rng.integers(0, 300, rows).astype(np.int32)
    if prefill:
        starts[0] = 0
    k = torch.randn(count + 1, page, kv_heads, size, device=cuda, dtype=torch.bfloat16)
    narrow = kv_dtype.itemsize == 1
    scales = KVScales(0.6, 1.7) if narrow else UNSCALED
    pages = KVPages(k.to(kv_dtype), torch.randn_like(k).to(kv_dtype))
    q = torch.randn(int(lengths.sum()), heads, size, device=cuda, dtype=torch.bfloat16)
    empty = torch.zeros(0, dtype=torch.int64, device=cuda)
    batch = Batch(
        ids=empty, positions=empty, kv_rows=empty,
        slots=torch.arange(rows, device=cuda, dtype=torch.int32),
        starts=starts, lengths=lengths, prefill_rows=prefill,
        prefill_tokens=int(lengths[:prefill].sum()), page_table=table, page_size=page,
    )  # fmt: skip
    shape = Shape(heads, kv_heads, size, page, torch.bfloat16, kv_dtype)
    own = own_decode(shape, False, rows, torch.device(cuda)) if even else None
    assert (own is not None) == even
    fast = PagedBackend(shape, (0,), ops, cuda, rows=64, columns=columns, own=own)
    slow = ReferenceBackend(cuda)
    fast.plan(batch)
    slow.plan(batch)
    wide = KVPages(pages.k.float() * scales.k, pages.v.float() * scales.v)
    want = slow.run(q.float(), wide, 0)
    assert relative(fast.run(q, pages, 0, scales), want) < 1e-2
    if not prefill:
        indptr = np.concatenate(([0], np.cumsum(-(-(starts + 1) // page)))).astype(np.int32)
        tables = fast.graph_inputs(rows)
        longs = [torch.zeros(rows, dtype=torch.int64, device=cuda) for _ in range(3)]
        last = torch.zeros(rows + 1, dtype=torch.int32, device=cuda)
        tables.indptr.copy_(torch.from_numpy(indptr))
        ops.row_inputs(
            batch.slots, torch.from_numpy(starts).to(cuda), tables.indptr, table, last, *longs,
            tables.last_len, tables.indices, page,
        )  # fmt: skip
        fast.plan_graph(rows, indptr)
        import dataclasses

        fast.plan(dataclasses.replace(batch, padded_rows=rows))
        assert relative(fast.run(q, pages, 0, scales), want) < 1e-2
        qkv = torch.randn(rows, (heads + 2 * kv_heads) * size, device=cuda, dtype=torch.bfloat16)
        turns = Turns(longs[1], torch.randn(400, size, device=cuda), None, None, 1e-5)
        apart = KVPages(pages.k.clone(), pages.v.clone())
        got = fast.run_unturned(qkv, turns, pages, 0, scales)
        assert (got is not None) == (even and rows <= fast.turns_rows)
        if got is not None:
            turned = ops.rope_store(
                qkv, turns.positions, turns.cos_sin, apart.k, apart.v, longs[2], None, None, 1e-5,
                scales.k, scales.v,
            )  # fmt: skip
            assert relative(got, fast.run(turned, apart, 0, scales)) < 1e-2
            assert relative(pages.k, apart.k) < 1e-2
            assert relative(pages.v, apart.v) == 0


@pytest.mark.parametrize(
    "prefill,windows,kv_dtype",
    [
        *((prefill, (0,), kv) for prefill in (0, 2) for kv in (torch.bfloat16, E4M3)),
        pytest.param(2, (0, 64), torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_shared_pages_against_the_reference(ops, kv_dtype, windows, prefill):
    """Two groups of rows that begin alike, and rows in none; layers with a window read all rows."""
    from appliance.kernels.paged_attention import Shape
    from appliance.runtime.model.attention.paged import PagedBackend
    from appliance.runtime.model.attention.reference import ReferenceBackend
    from appliance.runtime.model.batch import UNSCALED, Batch, KVPages, KVScales, Shared

    rng = np.random.default_rng(prefill)
    heads, kv_heads, size, page, columns = HEADS, KV_HEADS, SIZE, 16, 40
    rows, pages = np.array([17, 2], dtype=np.int32), np.array([30, 7], dtype=np.int32)
    count = prefill + int(rows.sum()) + 3
    table = rng.permutation(count * columns).astype(np.int32).reshape(count, columns) + 1
    starts = rng.integers(0, page * columns, count).astype(np.int32)
    lengths = np.ones(count, dtype=np.int32)
    lengths[:prefill] = 50
    starts[:prefill] = 100
    at = prefill
    for n, shared in zip(rows.tolist(), pages.tolist(), strict=True):
        table[at : at + n, :shared] = table[at, :shared]
        starts[at : at + n] = rng.integers(shared * page, page * columns, n)
        at += n
    empty = torch.zeros(0, dtype=torch.int64, device=cuda)
    batch = Batch(
        ids=empty, positions=empty, kv_rows=empty,
        slots=torch.arange(count, device=cuda, dtype=torch.int32), starts=starts, lengths=lengths,
        prefill_rows=prefill, prefill_tokens=int(lengths[:prefill].sum()),
        page_table=torch.from_numpy(table).to(cuda), page_size=page, shared=Shared(rows, pages),
    )  # fmt: skip
    scales = KVScales(0.6, 1.7) if kv_dtype.itemsize == 1 else UNSCALED
    k = torch.randn(count * columns + 1, page, kv_heads, size, device=cuda).to(kv_dtype)
    v = torch.randn(k.shape, device=cuda).to(kv_dtype)
    q = torch.randn(int(lengths.sum()), heads, size, device=cuda, dtype=torch.bfloat16)
    fast = PagedBackend(
        Shape(heads, kv_heads, size, page, torch.bfloat16, kv_dtype),
        windows,
        ops,
        cuda,
        64,
        columns,
    )
    slow = ReferenceBackend(cuda)
    fast.plan(batch)
    slow.plan(batch)
    wide = KVPages(k.float() * scales.k, v.float() * scales.v)
    for window in windows:
        got = fast.run(q, KVPages(k, v), window, scales)
        assert relative(got, slow.run(q.float(), wide, window)) < 1e-2
