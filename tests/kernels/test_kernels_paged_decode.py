"""Decode attention that divides pages evenly, against plain torch in float32."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from decode_rows import BF16, SHAPES, DecodeRows, cuda, relative
from torch import Tensor

from appliance.kernels import paged_decode
from appliance.kernels.paged_decode import PagedDecode, Shape

LENGTHS = {
    "one token": [1],
    "one long row": [5000],
    "edges of pages": [1, 16, 17, 15, 32, 31],
    "short beside long": [300] * 20 + [60000, 3],
    "many alike": [300] * 500,
    "many unlike": np.random.default_rng(5).integers(1, 3000, 137).tolist(),
}


class Rows(DecodeRows):
    def __init__(self, shape: Shape, lengths: list[int], seed: int) -> None:
        super().__init__(shape, lengths, seed)
        self.q = torch.randn(
            len(lengths), shape.heads, shape.head_dim, device=cuda, dtype=shape.dtype
        )

    def want(self, k_scale: float = 1.0, v_scale: float = 1.0) -> Tensor:
        return self.attended(self.q, self.k, self.v, k_scale, v_scale)

    def run(self, kernel: PagedDecode, **options: float) -> Tensor:
        out = torch.full_like(self.q, math.nan)
        kernel.run(self.q, self.k, self.v, self.indptr, self.last_len, self.indices, out, **options)
        return out


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_against_plain_torch(shape: str, lengths: str) -> None:
    rows = Rows(SHAPES[shape], LENGTHS[lengths], seed=len(lengths))
    kernel = PagedDecode(SHAPES[shape], len(rows.lengths), torch.device(cuda))
    want = rows.want()
    for programs in (0, 7, 40):
        out = rows.run(kernel, programs=programs)
        assert relative(out, want) < (4e-3 if SHAPES[shape].dtype is BF16 else 1e-3)
        assert torch.equal(rows.run(kernel, programs=programs), out)  # whoever was last


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["8B", "8-bit pages"])
@pytest.mark.parametrize("seed", range(8))
def test_rows_of_random_lengths(shape: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 400))
    lengths = np.exp(rng.uniform(0, rng.uniform(2, 9), count)).astype(int).tolist()
    rows = Rows(SHAPES[shape], lengths, seed)
    out = rows.run(PagedDecode(SHAPES[shape], count, torch.device(cuda)))
    assert relative(out, rows.want()) < 4e-3


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["8B", "8-bit pages"])
def test_scales_of_pages(shape: str) -> None:
    rows = Rows(SHAPES[shape], [700, 33, 5], seed=1)
    kernel = PagedDecode(SHAPES[shape], 3, torch.device(cuda))
    out = rows.run(kernel, k_scale=0.6, v_scale=1.7)
    assert relative(out, rows.want(0.6, 1.7)) < 4e-3


@pytest.mark.gpu
def test_large_scores() -> None:
    """One key far above all others, in the middle of a range: what came before counts nothing."""
    rows = Rows(SHAPES["8B"], [4000, 100], seed=2)
    page, head = int(rows.indices[120]), 3
    rows.k[page, 5, head] = 40 * rows.q[0, head * 4] / rows.q[0, head * 4].norm()
    kernel = PagedDecode(SHAPES["8B"], 2, torch.device(cuda))
    assert relative(rows.run(kernel), rows.want()) < 4e-3


@pytest.mark.gpu
def test_captured_and_replayed_with_other_lists() -> None:
    shape = SHAPES["8B"]
    kernel = PagedDecode(shape, 64, torch.device(cuda))
    first, second = Rows(shape, [900] * 64, seed=3), Rows(shape, list(range(5, 1285, 20)), seed=4)
    indices = torch.zeros(1 << 14, dtype=torch.int32, device=cuda)
    first.indices = indices[: len(first.indices)].copy_(first.indices)
    out = torch.empty_like(first.q)
    given = first.q, first.k, first.v, first.indptr, first.last_len, indices, out
    kernel.run(*given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel.run(*given)
    graph.replay()
    assert relative(out, first.want()) < 4e-3
    indices[: len(second.indices)] = second.indices
    first.indptr.copy_(second.indptr)
    first.last_len.copy_(second.last_len)
    pages = min(len(first.k), len(second.k))
    first.k[:pages], first.v[:pages] = second.k[:pages], second.v[:pages]
    first.q.copy_(second.q)
    graph.replay()
    assert relative(out, second.want()) < 4e-3


def test_what_it_does_not_know() -> None:
    shape = SHAPES["8B"]
    assert paged_decode.why_not(shape, (8, 0)) == ""
    assert "7.5" in paged_decode.why_not(shape, (7, 5))
    assert "8.6" in paged_decode.why_not(shape._replace(narrow=True), (8, 6))
    assert "float32" in paged_decode.why_not(shape._replace(dtype=torch.float32), (9, 0))
    assert "256" in paged_decode.why_not(shape._replace(head_dim=256), (9, 0))
    assert "8 tokens" in paged_decode.why_not(shape._replace(page=8), (9, 0))
    assert "32 query heads to 2" in paged_decode.why_not(shape._replace(kv_heads=2), (9, 0))


@pytest.mark.parametrize(
    "shared_kib,name,want",
    [
        (226, "8B", (8, 3)),
        (162, "8B", (4, 5)),
        (98, "8B", (4, 3)),
        (226, "8-bit pages", (8, 6)),
        (98, "8-bit pages", (8, 3)),
    ],
)
def test_division_of_shared_memory(shared_kib: int, name: str, want: tuple[int, int]) -> None:
    assert paged_decode.divided(SHAPES[name], shared_kib << 10) == want


def test_each_head_has_a_warp_however_small_the_share() -> None:
    assert paged_decode.enough(SHAPES["8B"], 8, 40) == 40
    assert paged_decode.enough(SHAPES["each its own, heads of 64"], 4, 6) == 8
    assert paged_decode.enough(SHAPES["a rank's odd share"], 4, 1) == 2


def test_every_name_of_the_source_is_given() -> None:
    source = Path(paged_decode.__file__).with_suffix(".cu").read_text()
    header = source[source.index("Given when it is compiled:") :].split("\n\n")[0]
    for definition in paged_decode.definitions(SHAPES["8B"], 8, 3):
        assert definition[2:].split("=")[0] in header
