"""Turning, storing and attention of few decode rows in one kernel, against plain torch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from decode_rows import BF16, SHAPES, DecodeRows, cuda, relative
from torch import Tensor

from appliance.kernels import turned_decode
from appliance.kernels.ops import Turns
from appliance.kernels.paged_decode import Shape
from appliance.kernels.torch_ops import TorchOps
from appliance.kernels.turned_decode import MAX_ROWS, Division, TurnedDecode

CONTEXT = 1 << 16
EPS = 1e-5

LENGTHS = {
    "one token": [1],
    "edges of pages": [1, 16, 17, 15, 32, 31, 33, 48],
    "twelve": [300] * 12,
    "as many as there may be": [500] * MAX_ROWS,
    "one long row": [40_000],
    "short beside long": [300] * 20 + [60_000, 3],
    "unlike": np.random.default_rng(5).integers(1, 6000, 27).tolist(),
}


class Rows(DecodeRows):
    def __init__(self, shape: Shape, lengths: list[int], head_norm: bool, seed: int) -> None:
        super().__init__(shape, lengths, seed, to_come=1)
        self.kv_rows = self.last_pages * shape.page + self.last_len - 1
        size = shape.head_dim
        wide = (shape.heads + 2 * shape.kv_heads) * size
        self.qkv = torch.randn(len(lengths), wide, device=cuda).to(shape.dtype)
        angles = torch.rand(CONTEXT, size // 2, device=cuda) * 2 * math.pi
        weights = (torch.rand(2, size, device=cuda) + 0.5).to(shape.dtype)
        self.turns = Turns(
            torch.tensor(lengths, device=cuda) - 1, torch.cat([angles.cos(), angles.sin()], 1),
            weights[0] if head_norm else None, weights[1] if head_norm else None, EPS,
        )  # fmt: skip

    def stored(self, k_scale: float, v_scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Queries in float32, and the pages with this step's tokens, by plain torch in float32."""
        t, s = self.turns, self.shape
        kept = [p.clone() if s.narrow else p.float() for p in (self.k, self.v)]
        weights = (None if w is None else w.float() for w in (t.q_weight, t.k_weight))
        q = TorchOps().rope_store(
            self.qkv.float(), t.positions, t.cos_sin, *kept, self.kv_rows, *weights, t.eps,
            k_scale, v_scale,
        )  # fmt: skip
        k, v = self.k.clone(), self.v.clone()
        for pages, new in zip((k, v), kept, strict=True):
            pages.flatten(0, 1)[self.kv_rows] = new.flatten(0, 1)[self.kv_rows].to(pages.dtype)
        return q, k, v

    def run(self, kernel: TurnedDecode, **options: float) -> tuple[Tensor, Tensor, Tensor]:
        k, v = self.k.clone(), self.v.clone()
        given = self.qkv, self.turns, k, v, self.indptr, self.last_len, self.indices
        return kernel.run(*given, **options), k, v


def _same_bits(a: Tensor, b: Tensor) -> bool:
    kind = torch.uint8 if a.element_size() == 1 else torch.int16
    return torch.equal(a.view(kind), b.view(kind))


def _check(
    rows: Rows, kernel: TurnedDecode, least: int, k_scale: float = 1.0, v_scale: float = 1.0
) -> None:
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    out, k, v = rows.run(kernel, least=least, **scales)
    q, k_want, v_want = rows.stored(k_scale, v_scale)
    others = torch.ones(len(k) * rows.shape.page, dtype=torch.bool, device=cuda)
    others[rows.kv_rows] = False
    for pages, pages_want in ((k, k_want), (v, v_want)):
        got, meant = pages.flatten(0, 1), pages_want.flatten(0, 1)
        assert _same_bits(got[others], meant[others])
        # keys are rounded before the norm's weight and behind it; 8 bits may fall to either side
        off = relative(got[~others], meant[~others].float())
        assert off < (3e-2 if rows.shape.narrow else 6e-3)
    if not rows.shape.narrow:
        assert _same_bits(v, v_want)
    want = rows.attended(q, k, v, k_scale, v_scale)
    assert relative(out, want) < (1e-2 if rows.shape.dtype is BF16 else 2e-3)
    again, *_ = rows.run(kernel, least=least, **scales)
    assert _same_bits(out, again)  # whoever was last


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("head_norm", [False, True])
def test_against_plain_torch(shape: str, lengths: str, head_norm: bool) -> None:
    rows = Rows(SHAPES[shape], LENGTHS[lengths], head_norm, seed=len(lengths))
    kernel = TurnedDecode(SHAPES[shape], head_norm, torch.device(cuda))
    for least in (768, 32):
        _check(rows, kernel, least)
    kernel.leave_room(True)
    _check(rows, kernel, 768)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["8B", "8-bit pages"])
@pytest.mark.parametrize("seed", range(8))
def test_rows_of_random_lengths(shape: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, MAX_ROWS + 1))
    lengths = np.exp(rng.uniform(0, rng.uniform(2, 9), count)).astype(int).tolist()
    kernel = TurnedDecode(SHAPES[shape], bool(seed % 2), torch.device(cuda))
    _check(Rows(SHAPES[shape], lengths, bool(seed % 2), seed), kernel, 768)


@pytest.mark.gpu
def test_scales_of_pages() -> None:
    rows = Rows(SHAPES["8-bit pages"], [700, 33, 5], False, seed=1)
    kernel = TurnedDecode(SHAPES["8-bit pages"], False, torch.device(cuda))
    _check(rows, kernel, 768, k_scale=0.6, v_scale=1.7)


@pytest.mark.gpu
def test_captured_behind_a_matmul_and_replayed_with_other_lists() -> None:
    shape = SHAPES["8B"]
    kernel = TurnedDecode(shape, False, torch.device(cuda))
    first = Rows(shape, [900] * 24, False, seed=3)
    second = Rows(shape, list(range(5, 845, 35)), False, seed=4)
    indices = torch.zeros(1 << 14, dtype=torch.int32, device=cuda)
    first.indices = indices[: len(first.indices)].copy_(first.indices)
    weight = torch.randn(first.qkv.shape[1], 512, device=cuda).to(shape.dtype)
    x = torch.randn(24, 512, device=cuda).to(shape.dtype) / 20
    first.qkv = x @ weight.T

    def step() -> Tensor:
        made = torch.mm(x, weight.T)
        return kernel.run(
            made, first.turns, first.k, first.v, first.indptr, first.last_len, indices
        )

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    q, *_ = first.stored(1.0, 1.0)
    want = first.attended(q, first.k, first.v, 1.0, 1.0)
    for _ in range(100):
        out.fill_(math.nan)
        graph.replay()
        assert relative(out, want) < 1e-2
    indices[: len(second.indices)] = second.indices
    for name in ("indptr", "last_len", "kv_rows"):
        getattr(first, name).copy_(getattr(second, name))
    first.turns.positions.copy_(second.turns.positions)
    pages = min(len(first.k), len(second.k))
    first.k[:pages], first.v[:pages] = second.k[:pages], second.v[:pages]
    first.lengths = second.lengths
    first.indices = second.indices
    graph.replay()
    q, *_ = first.stored(1.0, 1.0)
    assert relative(out, first.attended(q, first.k, first.v, 1.0, 1.0)) < 1e-2


def test_what_it_does_not_know() -> None:
    shape = SHAPES["8B"]
    assert turned_decode.why_not(shape, (9, 0)) == ""
    assert "Hopper" in turned_decode.why_not(shape, (8, 9))
    assert "shared memory" in turned_decode.why_not(shape, (12, 0))
    assert "256" in turned_decode.why_not(shape._replace(head_dim=256), (9, 0))


@pytest.mark.parametrize(
    "shared_kib,name,alone,want",
    [
        (227, "8B", True, Division(8, 3, 1)),
        (227, "8B", False, Division(4, 3, 2)),
        (227, "8-bit pages", True, Division(8, 6, 1)),
        (227, "8-bit pages", False, Division(4, 6, 2)),
        (99, "8-bit pages", False, Division(4, 3, 2)),
    ],
)
def test_division_of_shared_memory(shared_kib: int, name: str, alone: bool, want: Division) -> None:
    assert turned_decode.divided(SHAPES[name], shared_kib << 10, alone) == want


def test_every_name_of_the_source_is_given() -> None:
    source = Path(turned_decode.__file__).with_name("paged_decode.cu").read_text()
    header = source[source.index("Given when it is compiled:") :].split("\n\n")[0]
    for definition in turned_decode.definitions(SHAPES["8B"], Division(4, 3, 2), False):
        assert definition[2:].split("=")[0] in header
