"""x W^T for few rows of x: the weights are read once, at the speed of memory.

Libraries lay out matmuls for many rows; with up to 64 of them the time is that of reading W. Here
each program streams a band of W's rows through a deep pipeline while x stays in the caches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tile(NamedTuple):
    """rows: band of W a program holds. depth: columns a step reads. split: programs that share a
    band's columns. stages, warps: of the pipeline."""

    rows: int
    depth: int
    split: int
    stages: int
    warps: int


@triton.jit
def _skinny(
    x, w, out, parts, M, N, K, stride_x, stride_w,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
    BIAS: tl.constexpr, bias,
):  # fmt: skip
    band = tl.program_id(0)
    piece = tl.program_id(1)
    m = tl.arange(0, BM)
    n = band * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    share = tl.cdiv(tl.cdiv(K, BK), SPLIT) * BK
    first = piece * share
    w_at = w + n[:, None].to(tl.int64) * stride_w + (first + k)[None, :]
    x_at = x + m[:, None] * stride_x + (first + k)[None, :]
    row_ok = (m < M)[:, None]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for _ in range(first, tl.minimum(first + share, K), BK):
        tile_w = tl.load(w_at, eviction_policy="evict_first")
        tile_x = tl.load(x_at, mask=row_ok, other=0.0)
        total = tl.dot(tile_x, tl.trans(tile_w), total)
        w_at += BK
        x_at += BK
    if SPLIT == 1:
        if BIAS:
            total += tl.load(bias + n).to(tl.float32)[None, :]
        place = out + m[:, None] * N + n[None, :]
        tl.store(place, total.to(out.dtype.element_ty), mask=row_ok)
    else:
        place = parts + (piece * M + m[:, None]) * N + n[None, :]
        tl.store(place, total, mask=row_ok)


@triton.jit
def _add_parts(
    parts, out, size, N, SPLIT: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, bias
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = i < size
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for piece in tl.static_range(SPLIT):
        total += tl.load(parts + piece * size + i, mask=ok, other=0.0)
    if BIAS:
        total += tl.load(bias + i % N, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=ok)


def skinny_matmul(x_MK: Tensor, w_NK: Tensor, bias_N: Tensor | None, tile: Tile) -> Tensor:
    """[M, K] and [N, K] -> [M, N], M ≤ 64; N divisible by tile.rows, K by tile.depth."""
    rows, depth = x_MK.shape
    outs = w_NK.shape[0]
    out = torch.empty((rows, outs), dtype=x_MK.dtype, device=x_MK.device)
    parts = out
    if tile.split > 1:
        parts = torch.empty((tile.split, rows, outs), dtype=torch.float32, device=x_MK.device)
    block = 16 if rows <= 16 else 32 if rows <= 32 else 64
    bias = bias_N if bias_N is not None else out
    _skinny[(outs // tile.rows, tile.split)](
        x_MK, w_NK, out, parts, rows, outs, depth, x_MK.stride(0), w_NK.stride(0),
        BM=block, BN=tile.rows, BK=tile.depth, SPLIT=tile.split,
        BIAS=bias_N is not None, bias=bias,
        num_stages=tile.stages, num_warps=tile.warps,
    )  # fmt: skip
    if tile.split > 1:
        size = rows * outs
        _add_parts[(triton.cdiv(size, 1024),)](
            parts, out, size, outs, SPLIT=tile.split, BLOCK=1024, BIAS=bias_N is not None, bias=bias
        )
    return out
