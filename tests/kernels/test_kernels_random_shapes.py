"""Every op over shapes that chance chose, in the model's dtype against plain torch in float32.

On a CPU it is plain torch in bfloat16 that is held to the bounds; on a GPU the kernels are. Outputs
are poisoned (conftest.py), inputs are new for each shape. Bounds are of the relative L2.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from appliance.kernels.ops import Ops, Rounded, Rounding, select
from appliance.kernels.torch_ops import TorchOps, round_rows

PLAIN = TorchOps()
BF16, E4M3, E5M2 = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
ROUNDED = 1e-2
"""What bfloat16 may round away: of a norm, an activation, a turn, a product."""
ROUNDED_8 = 3.6e-2
"""What e4m3 may: at most 1 / 16 of a value, in the mean square that by the root of 3."""
STORED = {BF16: ROUNDED, E4M3: 3e-2, E5M2: 4.5e-2}
"""Of keys and values: what bfloat16 rounds may be on the border of a step of 8 bits, and fall to
the other side. By the root of what bfloat16 is off times the step that is 1.6e-2 and 2.2e-2."""
SEEDS = range(12)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    with torch.device(request.param):
        yield torch.device(request.param)


@pytest.fixture
def ops(device: torch.device) -> Ops:
    return select(device, BF16, search=True)


@pytest.fixture(params=SEEDS)
def rng(request: pytest.FixtureRequest) -> random.Random:
    torch.manual_seed(request.param)
    return random.Random(request.param)


def some(rng: random.Random, most: int, step: int = 1) -> int:
    """1 to `most` steps, small ones as often as large ones."""
    return step * max(1, round(most ** rng.random()))


def relative(out: Tensor, want: Tensor) -> float:
    out, want = out.double(), want.double()
    return float((out - want).norm() / want.norm())


def wide(rounded: Rounded) -> Tensor:
    assert rounded.values.is_contiguous() and rounded.scale.is_contiguous()
    return rounded.values.float() * rounded.scale


def within(x: Tensor, scale: Tensor) -> Tensor:
    """What of x 8 bits can hold at this scale."""
    return torch.minimum(torch.maximum(x.float(), -448 * scale), 448 * scale)


def ways(rng: random.Random) -> Rounding:
    if rng.random() < 0.4:
        return Rounding(torch.tensor([rng.uniform(0.004, 0.02)]), 0.0)
    return Rounding(None, rng.choice((0.0, 1.5)))


def test_norm_and_activation(ops: Ops, rng: random.Random) -> None:
    tokens, width = some(rng, 600), some(rng, 512, 16)
    x, residual = torch.randn(tokens, width).to(BF16), torch.randn(tokens, width).to(BF16)
    weight = (torch.rand(width) + 0.5).to(BF16)
    want = PLAIN.rms_norm(x.float(), weight.float(), 1e-5)
    assert relative(ops.rms_norm(x, weight, 1e-5), want) < ROUNDED
    got = ops.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    both = PLAIN.add_rms_norm(x.float(), residual.float(), weight.float(), 1e-5)
    assert all(relative(a, b) < ROUNDED for a, b in zip(got, both, strict=True))
    gates = torch.cat((x, residual), 1)
    assert relative(ops.silu_and_mul(gates), PLAIN.silu_and_mul(gates.float())) < ROUNDED


def test_norm_and_activation_that_round(ops: Ops, rng: random.Random) -> None:
    tokens, width, how = some(rng, 600), some(rng, 900, 16), ways(rng)
    x, residual = torch.randn(tokens, width).to(BF16), torch.randn(tokens, width).to(BF16)
    weight = (torch.rand(width) + 0.5).to(BF16)
    with_residual = rng.random() < 0.5
    given = residual.clone() if with_residual else None
    got, total = ops.rounded_norm(x.clone(), given, weight, 1e-5, how)
    if with_residual:
        want, sums = PLAIN.add_rms_norm(x.float(), residual.float(), weight.float(), 1e-5)
        assert relative(total, sums) < ROUNDED
    else:
        want = PLAIN.rms_norm(x.float(), weight.float(), 1e-5)
    assert relative(wide(got), within(want, got.scale)) < ROUNDED_8 + ROUNDED
    gates = torch.cat((x, residual), 1)
    acted = ops.rounded_silu_and_mul(gates, how)
    want = PLAIN.silu_and_mul(gates.float())
    assert relative(wide(acted), within(want, acted.scale)) < ROUNDED_8 + ROUNDED


def test_linear_in_8_bits(ops: Ops, rng: random.Random) -> None:
    """The product of what was rounded alike, so that no rounding to 8 bits is in the bound."""
    tokens, outs, ins, how = some(rng, 400), some(rng, 200, 16), some(rng, 200, 16), ways(rng)
    x = torch.randn(tokens, ins).to(BF16)
    weight = torch.randn(outs, ins) * 0.05
    scale = weight.abs().amax(1) / 448
    weight = (weight / scale[:, None]).to(E4M3)
    bias = torch.randn(outs).to(BF16) if rng.random() < 0.5 else None
    got = ops.fp8_linear(x, weight, scale, how.fixed, how.cap, bias)
    want = PLAIN.fp8_linear(x.float(), weight, scale, how.fixed, how.cap, bias)
    assert relative(got, want) < ROUNDED
    given = Rounded(*round_rows(x, how.fixed, how.cap), BF16)
    assert relative(ops.fp8_linear(given, weight, scale, how.fixed, how.cap, bias), want) < ROUNDED


def test_linear_in_blocks(ops: Ops, rng: random.Random) -> None:
    tokens = some(rng, 400)
    steps = rng.choice(((8, 16), (16, 128)))  # of the latter are those that a library multiplies by
    outs, ins = (some(rng, 1600 // step, step) for step in steps)
    x = torch.randn(tokens, ins).to(BF16)
    weight = (torch.randn(outs, ins) * 100).clamp(-448, 448).to(E4M3)
    scale = torch.rand(-(-outs // 128), -(-ins // 128)) * 0.01 + 0.001
    bias = torch.randn(outs).to(BF16) if rng.random() < 0.5 else None
    got = ops.fp8_block_linear(x, weight, scale, bias)
    assert relative(got, PLAIN.fp8_block_linear(x.float(), weight, scale, bias)) < ROUNDED


def test_turn_and_store(ops: Ops, rng: random.Random, device: torch.device) -> None:
    kv_heads, size = some(rng, 16), rng.choice((64, 128))
    heads, page = kv_heads * rng.randint(1, 8), rng.choice((8, 16, 32, 64))
    tokens, kv_dtype = some(rng, 300), rng.choice((BF16, E4M3, E5M2))
    pages = -(-tokens // page) + rng.randrange(20)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * size).to(BF16)
    positions, table = torch.randint(0, 500, (tokens,)), torch.randn(500, size)
    rows = torch.randperm(pages * page)[:tokens]
    weights = [(torch.rand(size) + 0.5).to(BF16) for _ in "qk"] if rng.random() < 0.5 else None
    scales = (1.0, 1.0) if kv_dtype is BF16 else (0.03, 0.7)
    found = []
    for maker, dtype in ((ops, BF16), (PLAIN, torch.float32)):
        stored = torch.float32 if dtype is torch.float32 and kv_dtype is BF16 else kv_dtype
        k = torch.full((pages, page, kv_heads, size), 7.0).to(stored)
        v = k.clone()
        own = [w.to(dtype) for w in weights] if weights else [None, None]
        q = maker.rope_store(qkv.to(dtype), positions, table, k, v, rows, *own, 1e-6, *scales)
        found.append((q, k.flatten(0, 1).float(), v.flatten(0, 1).float()))
    (q, *stored), (want_q, *want_stored) = found
    assert relative(q, want_q) < ROUNDED
    for got, want in zip(stored, want_stored, strict=True):
        assert relative(got[rows], want[rows]) < STORED[kv_dtype]
    others = torch.ones(pages * page, dtype=torch.bool)
    others[rows] = False
    assert bool((found[0][1][others] == found[1][1][others]).all())


def test_choice_of_tokens(ops: Ops, rng: random.Random) -> None:
    rows, vocab = some(rng, 300), some(rng, 40_000)
    logits = torch.randn(rows, vocab)
    tied = logits.to(BF16)
    assert torch.equal(ops.first_largest(tied, -7), PLAIN.first_largest(tied, -7))
    seeds = torch.randint(0, 1 << 62, (rows,))
    counters = torch.randint(0, 5000, (rows,), dtype=torch.int32)
    given = torch.rand(rows) + 0.3, seeds, counters
    drawn = ops.gumbel_argmax(tied, *given)
    # logarithms differ in the last bit: a tie within it may go either way
    assert float((drawn == PLAIN.gumbel_argmax(tied, *given)).float().mean()) > 0.9
    at = torch.randperm(rows)[: max(1, rows // 2)].int()
    top_k = torch.randint(1, vocab + 1, (len(at),), dtype=torch.int32)
    top_p, min_p = torch.rand(len(at)), torch.rand(len(at)) * 0.2
    got = ops.keep_likely(logits.clone(), at, top_k, top_p, min_p)
    want = PLAIN.keep_likely(logits.clone(), at, top_k, top_p, min_p)
    differs = (got > -torch.inf) != (want > -torch.inf)
    assert float((logits.double().softmax(-1) * differs).sum(-1).max()) < 1e-4
    assert torch.equal(got[got > -torch.inf], logits[got > -torch.inf])


def test_penalties_and_masks(ops: Ops, rng: random.Random) -> None:
    rows, vocab = some(rng, 300), some(rng, 40_000)
    logits = torch.randn(rows, vocab) * 3
    table = torch.randint(0, 7, (rows + 4, vocab), dtype=torch.int16)
    table[torch.rand(table.shape) < 0.8] = 0
    at = torch.randperm(rows)[: max(1, rows // 2)]
    own = torch.randperm(rows + 4)[: len(at)]
    factors = torch.rand(len(at)) + 0.5, torch.randn(len(at)), torch.randn(len(at))
    bits = torch.randint(-(2**31), 2**31 - 1, (len(at), -(-vocab // 32)), dtype=torch.int32)
    found = []
    for maker in (ops, PLAIN):
        changed = logits.clone()
        maker.penalize(changed, at, table, own, *factors)
        maker.allow(changed, at.flip(0), bits)
        found.append(changed)
    assert torch.equal(found[0].isinf(), found[1].isinf())
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_what_is_not_written_is_seen() -> None:
    for dtype in (torch.float32, BF16, E4M3, E5M2):
        assert bool(torch.empty(3, dtype=dtype).float().isnan().all())
        assert bool(torch.zeros(3, dtype=dtype).new_empty(2).float().isnan().all())
    assert torch.empty_like(torch.zeros(1, dtype=torch.int32)).item() == 2**31 - 1
