"""The kernel for few rows: how its work is divided, and on a GPU what it says."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from appliance.kernels import cuda_source, few_rows
from appliance.kernels.few_rows import HEAD, FewRows, LayerTensors, Shape
from appliance.kernels.torch_ops import TorchOps

cuda = torch.device("cuda")
EPS = 1e-5
LLAMA_8B = Shape(4096, 14336, 32, 8, 16, head_norm=False, narrow=False)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hidden": 4000}, "hidden size 4000 is not divisible by 512"),
        ({"inner": 14336 + 512, "narrow": True}, "divisible by 1024"),
        ({"kv_heads": 3}, "32 query heads share 3"),
        ({"kv_heads": 2}, "32 query heads share 2"),
    ],
)
def test_what_it_cannot_divide_is_named(changed: dict[str, int], said: str) -> None:
    assert said in few_rows.why_not(LLAMA_8B._replace(**changed), (9, 0))


def test_gpus_before_hopper_are_named() -> None:
    assert "Hopper" in few_rows.why_not(LLAMA_8B, (8, 9))
    assert not few_rows.why_not(LLAMA_8B, (9, 0)) and not few_rows.why_not(LLAMA_8B, (10, 0))


@given(
    hidden=st.integers(1, 64), inner=st.integers(1, 160), each=st.integers(1, 8),
    kv_heads=st.integers(1, 16), narrow=st.booleans(),
)  # fmt: skip
def test_what_can_be_divided_is(
    hidden: int, inner: int, each: int, kv_heads: int, narrow: bool
) -> None:
    """Every row is whole stages of the ring."""
    shape = Shape(hidden * 128, inner * 128, each * kv_heads, kv_heads, 16, False, narrow)
    depths = (shape.hidden, shape.inner, shape.heads * HEAD)
    divides = all(d * (1 if narrow else 2) % 1024 == 0 for d in depths)
    assert (few_rows.why_not(shape, (9, 0)) == "") == divides


@given(
    rows=st.integers(1, 8), kv_heads=st.integers(1, 32), programs=st.integers(1, 200),
)  # fmt: skip
def test_runs_of_a_rows_tokens_fit_what_they_are_put_together_from(
    rows: int, kv_heads: int, programs: int
) -> None:
    """Where there are several to a row, all of them have a block at the same time."""
    splits = few_rows.splits_for(rows, kv_heads, programs)
    assert 1 <= splits <= 16
    assert splits == 1 or rows * kv_heads * splits <= programs


@given(
    hidden=st.integers(1, 16), inner=st.integers(1, 40), each=st.integers(1, 8),
    kv_heads=st.integers(1, 16), narrow=st.booleans(), programs=st.integers(1, 190),
    shared_bytes=st.sampled_from([101_376, 166_912, 232_448]),
)  # fmt: skip
def test_it_is_divided(
    hidden: int, inner: int, each: int, kv_heads: int, narrow: bool, programs: int,
    shared_bytes: int,
) -> None:  # fmt: skip
    """A plan fits shared memory with stages to spare, every block has a part of each weight, and
    every sum of squares has its place."""
    shape = Shape(hidden * 512, inner * 512, each * kv_heads, kv_heads, 16, False, narrow)
    found = few_rows.plan(shape, programs, shared_bytes)
    assert found.shared_bytes <= shared_bytes - 1024
    assert 1 <= found.away <= found.stages <= 13 and found.stages >= 3
    assert found.room >= max(8 * 64 * 9 * 4, 4 * 8 * each * (HEAD + 4))
    assert found.blocks_gate in (2, 4) and 1 <= found.blocks_qkv <= 3
    outs = ((shape.heads + 2 * kv_heads) * HEAD, shape.hidden, shape.inner)
    assert all(size // 2 >= programs for size in outs)
    pieces = few_rows.pieces_for(shape, programs)
    starts = [shape.hidden // 2 * i // programs * 2 for i in range(programs + 1)]
    tiles = max(-(-(b - a) // 32) for a, b in itertools.pairwise(starts))
    assert tiles * programs == pieces
    handed = few_rows.places(shape, programs)
    assert list(handed.values()) == sorted(handed.values())
    assert all(at % 16 == 0 for at in handed.values())
    assert handed["handed_bytes"] > 8 * 2 * (2 * shape.hidden + shape.inner)


def test_of_llama_8b() -> None:
    """As it was measured, on 132 multiprocessors of 227 KiB: three blocks for qkv's 46 rows."""
    found = few_rows.plan(LLAMA_8B, 132, 232_448)
    assert found[:4] == (3, 4, 13, 4)
    assert "-DSTAGES=13" in few_rows.definitions(LLAMA_8B, found)
    assert few_rows.splits_for(1, 8, 132) == 16 and few_rows.splits_for(8, 8, 132) == 2


class Model(NamedTuple):
    """Layers as the kernel takes them, and their weights in float32."""

    layers: list[LayerTensors]
    wide: list[list[torch.Tensor]]
    first_norm: torch.Tensor
    final_norm: torch.Tensor


def norm_weight(size: int) -> torch.Tensor:
    return (torch.rand(size, device=cuda) + 0.5).bfloat16()


def made(shape: Shape, count: int, pages: int, positions: int) -> Model:
    mixed, size = shape.heads * HEAD, (shape.heads + 2 * shape.kv_heads) * HEAD
    norms = [norm_weight(shape.hidden) for _ in range(count + 1)]
    layers, wide = [], []
    for i in range(count):
        values, scales, whole = [], [], []
        for outs, ins in (
            (size, shape.hidden), (shape.hidden, mixed), (2 * shape.inner, shape.hidden),
            (shape.hidden, shape.inner),
        ):  # fmt: skip
            w, scale = torch.randn(outs, ins, device=cuda) * ins**-0.5, None
            if shape.narrow:
                scale = w.abs().amax(1) / 448
                w = (w / scale[:, None]).to(torch.float8_e4m3fn)
            else:
                w = w.bfloat16()
            values.append(w)
            scales.append(scale)
            whole.append(w.float() * (scale[:, None] if scale is not None else 1.0))
        heads = [norm_weight(HEAD) if shape.head_norm else None for _ in range(2)]
        k, v = (
            torch.randn(pages, shape.page, shape.kv_heads, HEAD, device=cuda).bfloat16()
            for _ in range(2)
        )
        angle = torch.rand(positions, HEAD // 2, device=cuda) * 6.28
        layers.append(
            LayerTensors(
                tuple(values), tuple(scales), norm_weight(shape.hidden), norms[i + 1], *heads,
                k, v, torch.cat([angle.cos(), angle.sin()], 1),
            )
        )  # fmt: skip
        wide.append(whole)
    return Model(layers, wide, norms[0], norms[-1])


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt((x**2).mean(-1, keepdim=True) + EPS) * weight.float()


class Rows(NamedTuple):
    ends: list[int]
    positions: torch.Tensor
    kv_rows: torch.Tensor
    indptr: torch.Tensor
    indices: torch.Tensor


def rows_of(count: int, most: int, page: int) -> Rows:
    ends = torch.randint(1, most + 1, (count,))
    counts = -(-ends // page)
    total = int(counts.sum())
    indptr = torch.cat([torch.zeros(1), counts.cumsum(0)]).int()
    indices = torch.randperm(total).int()
    last = indices[(indptr[1:] - 1).long()].long()
    kv_rows = last * page + (ends - 1) % page
    return Rows(ends.tolist(), *(t.to(cuda) for t in (ends - 1, kv_rows, indptr, indices)))


def reference(model: Model, shape: Shape, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """In float32 by plain torch; K and V of the tokens go to float32 copies of the pages."""
    h, norm = x.float(), model.first_norm
    for layer, (qkv, out, gate_up, down) in zip(model.layers, model.wide, strict=True):
        k, v = layer.k.float(), layer.v.float()
        heads = (w.float() if w is not None else None for w in (layer.q_norm, layer.k_norm))
        q = TorchOps().rope_store(
            normed(h, norm) @ qkv.T, rows.positions, layer.cos_sin, k, v, rows.kv_rows, *heads, EPS
        )
        mixed = torch.empty(len(h), shape.heads, HEAD, device=cuda)
        for b, end in enumerate(rows.ends):
            own = rows.indices[rows.indptr[b] : rows.indptr[b + 1]].long()
            keys, values = (
                t[own].reshape(-1, shape.kv_heads, HEAD)[:end].repeat_interleave(
                    shape.heads // shape.kv_heads, 1)
                for t in (k, v)
            )  # fmt: skip
            scores = torch.einsum("hd,thd->ht", q[b], keys) * HEAD**-0.5
            mixed[b] = torch.einsum("ht,thd->hd", scores.softmax(1), values)
        h = h + mixed.flatten(1) @ out.T
        gate, up = (normed(h, layer.mlp_norm) @ gate_up.T).chunk(2, 1)
        h = h + torch.nn.functional.silu(gate) * up @ down.T
        norm = layer.next_norm
    return normed(h, model.final_norm)


def relative(out: torch.Tensor, want: torch.Tensor) -> float:
    return float((out.double() - want.double()).norm() / want.double().norm())


SHAPES = {
    "llama 8b": LLAMA_8B,
    "llama 8b, fp8": LLAMA_8B._replace(narrow=True),
    "qwen3, small": Shape(1024, 3072, 16, 8, 16, head_norm=True, narrow=False),
    "qwen3, small, fp8": Shape(1024, 3072, 16, 8, 16, head_norm=True, narrow=True),
    "eight to a head": Shape(2048, 1536, 32, 4, 32, head_norm=True, narrow=False),
    "one to a head": Shape(512, 1024, 8, 8, 16, head_norm=False, narrow=False),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHAPES)
def test_on_the_gpu_against_float32(name: str, tmp_path: Path) -> None:
    """Captured once for each row count and played with fresh rows, tokens and pages."""
    shape, most = SHAPES[name], 700
    pages = 8 * -(-most // shape.page)
    model = made(shape, 2, pages, most)
    kernel = FewRows(
        shape, model.layers, model.first_norm, model.final_norm, EPS, HEAD**-0.5, tmp_path
    )
    assert len(list(tmp_path.iterdir())) == 1
    for count in (1, 2, 3, 5, 7, 8):
        x = torch.zeros(count, shape.hidden, device=cuda, dtype=torch.bfloat16)
        positions = torch.zeros(count, device=cuda, dtype=torch.int64)
        indptr = torch.zeros(count + 1, device=cuda, dtype=torch.int32)
        indices = torch.zeros(pages, device=cuda, dtype=torch.int32)
        indptr.copy_(torch.arange(count + 1))
        with torch.cuda.stream(torch.cuda.Stream()):
            kernel.run(x, positions, indptr, indices)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = kernel.run(x, positions, indptr, indices)
        for most_now in (1, shape.page, 100, most):
            rows = rows_of(count, most_now, shape.page)
            x.copy_(torch.randn(count, shape.hidden))
            positions.copy_(rows.positions)
            indptr.copy_(rows.indptr)
            indices[: len(rows.indices)].copy_(rows.indices)
            want = reference(model, shape, x, rows)
            out.fill_(float("nan"))
            graph.replay()
            assert relative(out, want) < 1.5e-2, (count, most_now)
            written = model.layers[0].k.flatten(0, 1)[rows.kv_rows]
            assert torch.isfinite(written).all()
            again = out.clone()
            graph.replay()
            assert torch.equal(out, again), "the same step twice"


@pytest.mark.gpu
def test_pages_are_written_as_the_plain_kernels_write_them() -> None:
    shape, most, count = SHAPES["qwen3, small"], 200, 8
    model = made(shape, 1, count * 13, most)
    (layer,), (weights,) = model.layers, model.wide
    kernel = FewRows(shape, model.layers, model.first_norm, model.final_norm, EPS, HEAD**-0.5)
    rows = rows_of(count, most, shape.page)
    x = torch.randn(count, shape.hidden, device=cuda).bfloat16()
    k, v = layer.k.float(), layer.v.float()
    before = layer.k.clone()
    TorchOps().rope_store(
        normed(x.float(), model.first_norm) @ weights[0].T, rows.positions, layer.cos_sin, k, v,
        rows.kv_rows, layer.q_norm.float(), layer.k_norm.float(), EPS,
    )  # fmt: skip
    kernel.run(x, rows.positions, rows.indptr, rows.indices)
    at = rows.kv_rows
    assert relative(layer.k.flatten(0, 1)[at], k.flatten(0, 1)[at]) < 1e-2
    assert relative(layer.v.flatten(0, 1)[at], v.flatten(0, 1)[at]) < 1e-2
    others = torch.ones(k.flatten(0, 1).shape[0], dtype=torch.bool, device=cuda)
    others[at] = False
    assert torch.equal(layer.k.flatten(0, 1)[others], before.flatten(0, 1)[others])


@pytest.mark.gpu
def test_it_says_the_same_a_thousand_times() -> None:
    """Its blocks never meet: what a pass leaves must not be taken for the next one's."""
    shape, most = LLAMA_8B, 900
    each = 8 * -(-most // shape.page)
    model = made(shape, 3, 3 * each, most)
    kernel = FewRows(shape, model.layers, model.first_norm, model.final_norm, EPS, HEAD**-0.5)
    cases = []
    for turn, count in enumerate((1, 3, 8)):  # on pages of their own: each writes to its own
        rows = rows_of(count, most, shape.page)
        rows = rows._replace(
            indices=rows.indices + turn * each, kv_rows=rows.kv_rows + turn * each * shape.page
        )
        x = torch.randn(count, shape.hidden, device=cuda).bfloat16()
        given = x, rows.positions, rows.indptr, rows.indices
        want = kernel.run(*given).clone()
        assert relative(want, reference(model, shape, x, rows)) < 1.5e-2
        cases.append((given, want))
    wrong = torch.zeros((), dtype=torch.int64, device=cuda)
    for turn in range(1000):
        given, want = cases[turn * 7 % 3]
        wrong += (kernel.run(*given) != want).any()
    assert int(wrong) == 0


@pytest.mark.gpu
@pytest.mark.parametrize(("page", "most"), [(16, 12_000), (64, 1_500), (128, 4_000)])
def test_on_long_rows(page: int, most: int) -> None:
    """Every run of a row's tokens is used, and a run's page numbers are fetched in several goes."""
    shape = SHAPES["one to a head"]._replace(page=page)
    for count in (1, 2, 8):
        model = made(shape, 2, count * -(-most // page), most)
        kernel = FewRows(shape, model.layers, model.first_norm, model.final_norm, EPS, HEAD**-0.5)
        rows = rows_of(count, most, page)
        x = torch.randn(count, shape.hidden, device=cuda).bfloat16()
        out = kernel.run(x, rows.positions, rows.indptr, rows.indices)
        assert relative(out, reference(model, shape, x, rows)) < 1.5e-2, count


@pytest.mark.gpu
def test_a_row_of_nan_ends_and_spares_the_others() -> None:
    """Blocks ask for a result until it is there: NaN must not look like one that is not."""
    shape, most = SHAPES["qwen3, small"], 300
    model = made(shape, 2, 4 * -(-most // shape.page), most)
    kernel = FewRows(shape, model.layers, model.first_norm, model.final_norm, EPS, HEAD**-0.5)
    rows = rows_of(4, most, shape.page)
    x = torch.randn(4, shape.hidden, device=cuda).bfloat16()
    x[2] = float("nan")
    out = kernel.run(x, rows.positions, rows.indptr, rows.indices)
    assert torch.isnan(out[2]).any()
    others = torch.tensor([0, 1, 3], device=cuda)
    want = reference(model, shape, x, rows)
    assert relative(out[others], want[others]) < 1.5e-2


@pytest.mark.gpu
def test_what_was_compiled_is_found_again(tmp_path: Path, monkeypatch) -> None:
    shape = SHAPES["one to a head"]
    divided = few_rows.plan(shape, 132, 232_448)
    given = few_rows._SOURCE, few_rows.definitions(shape, divided), "sm_90a", tmp_path
    first = cuda_source.image(*given)
    monkeypatch.setattr(cuda_source, "_compiled", lambda *_: pytest.fail("compiled again"))
    assert cuda_source.image(*given) == first
