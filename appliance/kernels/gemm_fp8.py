"""8-bit float matmuls: tokens rounded to e4m3 in one pass, then a product that undoes the scales.

Shapes: M tokens, N outputs, K inputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from appliance.kernels.dependent import behind, launched
from appliance.kernels.ops import Activation, Rounded


@triton.jit
def _round_rows(
    x, out, scale, fixed, K, stride, cap,
    FIXED: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One row: its largest magnitude becomes 448, or the fixed scale is used."""
    if DEPENDENT:
        behind()
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    ok = at < K
    value = tl.load(x + row * stride + at, mask=ok, other=0.0).to(tl.float32)
    if FIXED:
        unit = tl.load(fixed)
    else:
        largest = tl.max(tl.abs(value))
        largest = tl.where(cap > 0, tl.minimum(largest, cap), largest)
        unit = tl.maximum(largest / 448.0, 1e-12)
    rounded = tl.minimum(tl.maximum(value / unit, -448.0), 448.0)
    tl.store(out + row * K + at, rounded.to(tl.float8e4nv), mask=ok)
    tl.store(scale + row, unit)


@triton.jit
def _round_runs(x, out, scale, K, stride, RUN: tl.constexpr):
    """One run of 128 values of one row."""
    row = tl.program_id(0).to(tl.int64)
    run = tl.program_id(1)
    at = run * RUN + tl.arange(0, RUN)
    ok = at < K
    value = tl.load(x + row * stride + at, mask=ok, other=0.0).to(tl.float32)
    unit = tl.maximum(tl.max(tl.abs(value)) / 448.0, 1e-12)
    rounded = tl.minimum(tl.maximum(value / unit, -448.0), 448.0)
    tl.store(out + row * K + at, rounded.to(tl.float8e4nv), mask=ok)
    tl.store(scale + row * tl.num_programs(1) + run, unit)


@triton.jit
def _block_matmul(
    x, w, x_scale, w_scale, out, bias, M, N, K, RUNS,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """A tile [BM, BN] over runs of BK = 128 inputs; scales are applied to each run's product."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    m_ok, n_ok = m < M, n < N
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for run in range(0, RUNS):
        at = run * BK + k
        k_ok = at < K
        tile_x = tl.load(
            x + m[:, None].to(tl.int64) * K + at[None, :], mask=m_ok[:, None] & k_ok[None, :],
            other=0.0,
        )  # fmt: skip
        tile_w = tl.load(
            w + n[None, :].to(tl.int64) * K + at[:, None], mask=n_ok[None, :] & k_ok[:, None],
            other=0.0,
        )  # fmt: skip
        unit_x = tl.load(x_scale + m * RUNS + run, mask=m_ok, other=0.0)
        unit_w = tl.load(w_scale + (n // 128) * RUNS + run, mask=n_ok, other=0.0)
        total += tl.dot(tile_x, tile_w) * unit_x[:, None] * unit_w[None, :]
    if BIAS:
        total += tl.load(bias + n, mask=n_ok, other=0.0).to(tl.float32)[None, :]
    place = out + m[:, None].to(tl.int64) * N + n[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=m_ok[:, None] & n_ok[None, :])


def round_rows(
    x_MK: Tensor, fixed: Tensor | None, cap: float, dependent: bool = False
) -> tuple[Tensor, Tensor]:
    """e4m3 [M, K] and the float32 scale [M, 1] that undoes it. dependent: it may begin before the
    kernel in front has ended."""
    rows, ins = x_MK.shape
    out = torch.empty((rows, ins), dtype=torch.float8_e4m3fn, device=x_MK.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x_MK.device)
    block = triton.next_power_of_2(ins)
    _round_rows[(rows,)](
        x_MK, out, scale, scale if fixed is None else fixed, ins, x_MK.stride(0), cap,
        FIXED=fixed is not None, BLOCK=block, DEPENDENT=dependent,
        num_warps=min(16, max(4, block // 1024)), **launched(dependent),
    )  # fmt: skip
    return out, scale


def linear(x: Rounded, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None) -> Tensor:
    return torch._scaled_mm(
        x.values,
        weight_NK.t(),
        scale_a=x.scale,
        scale_b=scale_N[None, :],
        bias=bias_N,
        out_dtype=x.dtype,
        use_fast_accum=True,
    )


def round_runs(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 [M, K] and the float32 scales of runs of 128."""
    rows, ins = x_MK.shape
    runs = triton.cdiv(ins, 128)
    out = torch.empty((rows, ins), dtype=torch.float8_e4m3fn, device=x_MK.device)
    scale = torch.empty((rows, runs), dtype=torch.float32, device=x_MK.device)
    _round_runs[(rows, runs)](x_MK, out, scale, ins, x_MK.stride(0), RUN=128, num_warps=1)
    return out, scale


def block_linear(
    x_MK: Activation, weight_NK: Tensor, scale_BC: Tensor, bias_N: Tensor | None
) -> Tensor:
    if isinstance(x_MK, Rounded):
        rounded, scale, _ = x_MK
    else:
        rounded, scale = round_runs(x_MK)
    rows, ins = rounded.shape
    outs, runs = weight_NK.shape[0], scale_BC.shape[1]
    out = torch.empty((rows, outs), dtype=x_MK.dtype, device=rounded.device)
    tile = 16 if rows <= 16 else 64 if rows <= 64 else 128
    _block_matmul[(triton.cdiv(rows, tile), triton.cdiv(outs, 128))](
        rounded, weight_NK, scale, scale_BC, out, bias_N if bias_N is not None else out,
        rows, outs, ins, runs,
        BM=tile, BN=128, BK=128, BIAS=bias_N is not None,
        num_warps=8 if tile == 128 else 4, num_stages=3,
    )  # fmt: skip
    return out
