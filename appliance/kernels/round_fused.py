"""Norm and activation that leave 8-bit floats: what the next linear would round is rounded where it
is made, and the wide tensor is never written.

Shapes: T tokens, E hidden, I inner width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from appliance.kernels.dependent import behind, launched
from appliance.kernels.gemm_fp8 import room_by_runs
from appliance.kernels.norm import summed
from appliance.kernels.ops import Rounding


@triton.jit
def _unit(largest, cap):
    """The scale by which the largest magnitude becomes 448."""
    largest = tl.where(cap > 0, tl.minimum(largest, cap), largest)
    return tl.maximum(largest / 448.0, 1e-12)


@triton.jit
def _put_rounded(
    value, at, width, out, scale, apart, fixed, cap,
    FIXED: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token's float32 values to `out`, 0 behind `width`: their largest magnitude becomes 448,
    or that of each run, or the fixed scale is used. apart: from a run's scale to the next one's."""
    if RUN > 0:
        runs = tl.reshape(value, (BLOCK // RUN, RUN))
        units = _unit(tl.max(tl.abs(runs), 1), cap)
        value = tl.reshape(runs / units[:, None], (BLOCK,))
        number = tl.arange(0, BLOCK // RUN)
        tl.store(scale + number * apart, units, mask=number * RUN < width)
    else:
        unit = tl.load(fixed) if FIXED else _unit(tl.max(tl.abs(value), 0), cap)
        value = value / unit
        tl.store(scale, unit)
    rounded = tl.minimum(tl.maximum(value, -448.0), 448.0)
    tl.store(out + at, rounded.to(out.dtype.element_ty), mask=at < width)


@triton.jit(do_not_specialize=["apart"])
def _norm(
    x, residual, weight, out, scale, fixed, eps, cap, E, stride, apart,
    ADD: tl.constexpr, FIXED: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if DEPENDENT:
        behind()
    at = tl.arange(0, BLOCK)
    ok = at < E
    kind = x.dtype.element_ty
    value = summed(x + row * stride, residual, row * E, at, ok, ADD)
    turned = value * tl.rsqrt(tl.sum(value * value, 0) / E + eps)
    turned *= tl.load(weight + at, mask=ok, other=0.0).to(tl.float32)
    # to the model's dtype first, as where norm and rounding are two kernels
    turned = turned.to(kind).to(tl.float32)
    _put_rounded(turned, at, E, out + row * E, scale + row, apart, fixed, cap, FIXED, RUN, BLOCK)


@triton.jit(do_not_specialize=["apart"])
def _silu_mul(
    x, out, scale, fixed, cap, INNER, stride, apart,
    FIXED: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if DEPENDENT:
        behind()
    at = tl.arange(0, BLOCK)
    ok = at < INNER
    gate = tl.load(x + row * stride + at, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(x + row * stride + INNER + at, mask=ok, other=0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    value = value.to(x.dtype.element_ty).to(tl.float32)
    _put_rounded(
        value, at, INNER, out + row * INNER, scale + row, apart, fixed, cap, FIXED, RUN, BLOCK
    )


def _target(
    rows: int, width: int, how: Rounding, x: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    if how.run:
        return room_by_runs(rows, width, how.run, dtype, x.device)
    return (
        torch.empty((rows, width), dtype=dtype, device=x.device),
        torch.empty((rows, 1), dtype=torch.float32, device=x.device),
    )


def _block(width: int, how: Rounding) -> int:
    return max(triton.next_power_of_2(width), how.run)


def _warps(block: int) -> int:
    return min(16, max(4, block // 1024))


def norm(
    x_TE: Tensor,
    residual_TE: Tensor | None,
    weight_E: Tensor,
    eps: float,
    how: Rounding,
    dtype: torch.dtype = torch.float8_e4m3fn,
    dependent: bool = False,
) -> tuple[Tensor, Tensor]:
    """(values [T, E], scale float32 [T, 1] or [T, runs]) of the norm of x, or of residual + x,
    which then lies in residual (contiguous). dtype: of the values; another one is for tests.
    dependent: it may begin before the kernel in front has ended."""
    rows, width = x_TE.shape
    out, scale = _target(rows, width, how, x_TE, dtype)
    block = _block(width, how)
    _norm[(rows,)](
        x_TE, x_TE if residual_TE is None else residual_TE, weight_E, out, scale,
        scale if how.fixed is None else how.fixed, eps, how.cap, width, x_TE.stride(0),
        scale.stride(1), ADD=residual_TE is not None, FIXED=how.fixed is not None, RUN=how.run,
        BLOCK=block, DEPENDENT=dependent, num_warps=_warps(block), **launched(dependent),
    )  # fmt: skip
    return out, scale


def silu_mul(
    x_TI2: Tensor,
    how: Rounding,
    dtype: torch.dtype = torch.float8_e4m3fn,
    dependent: bool = False,
) -> tuple[Tensor, Tensor]:
    """(values [T, I], scale float32 [T, 1] or [T, runs]) of silu(left half) * right half."""
    rows, width = x_TI2.shape[0], x_TI2.shape[1] // 2
    out, scale = _target(rows, width, how, x_TI2, dtype)
    block = _block(width, how)
    _silu_mul[(rows,)](
        x_TI2, out, scale, scale if how.fixed is None else how.fixed, how.cap, width,
        x_TI2.stride(0), scale.stride(1), FIXED=how.fixed is not None, RUN=how.run, BLOCK=block,
        DEPENDENT=dependent, num_warps=_warps(block), **launched(dependent),
    )  # fmt: skip
    return out, scale
