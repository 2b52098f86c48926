"""Norm and activation that leave 8-bit floats: what the next linear would round is rounded where it
is made, and the wide tensor is never written.

Shapes: T tokens, E hidden, I inner width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _put_rounded(value, ok, out, scale, fixed, cap, FIXED: tl.constexpr):
    """One token's float32 values to `out`: their largest magnitude becomes 448, or the fixed scale
    is used."""
    if FIXED:
        unit = tl.load(fixed)
    else:
        largest = tl.max(tl.abs(value), 0)
        largest = tl.where(cap > 0, tl.minimum(largest, cap), largest)
        unit = tl.maximum(largest / 448.0, 1e-12)
    rounded = tl.minimum(tl.maximum(value / unit, -448.0), 448.0)
    tl.store(out, rounded.to(out.dtype.element_ty), mask=ok)
    tl.store(scale, unit)


@triton.jit
def _norm(
    x, residual, weight, out, scale, fixed, eps, cap, E, stride,
    ADD: tl.constexpr, FIXED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    ok = at < E
    kind = x.dtype.element_ty
    value = tl.load(x + row * stride + at, mask=ok, other=0.0).to(tl.float32)
    if ADD:
        place = residual + row * E + at
        value += tl.load(place, mask=ok, other=0.0).to(tl.float32)
        kept = value.to(kind)
        tl.store(place, kept, mask=ok)
        value = kept.to(tl.float32)
    turned = value * tl.rsqrt(tl.sum(value * value, 0) / E + eps)
    turned *= tl.load(weight + at, mask=ok, other=0.0).to(tl.float32)
    # to the model's dtype first, as where norm and rounding are two kernels
    turned = turned.to(kind).to(tl.float32)
    _put_rounded(turned, ok, out + row * E + at, scale + row, fixed, cap, FIXED)


@triton.jit
def _silu_mul(x, out, scale, fixed, cap, INNER, stride, FIXED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    ok = at < INNER
    gate = tl.load(x + row * stride + at, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(x + row * stride + INNER + at, mask=ok, other=0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    value = value.to(x.dtype.element_ty).to(tl.float32)
    _put_rounded(value, ok, out + row * INNER + at, scale + row, fixed, cap, FIXED)


def _target(rows: int, width: int, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (
        torch.empty((rows, width), dtype=dtype, device=x.device),
        torch.empty((rows, 1), dtype=torch.float32, device=x.device),
    )


def _warps(block: int) -> int:
    return min(16, max(4, block // 1024))


def norm(
    x_TE: Tensor,
    residual_TE: Tensor | None,
    weight_E: Tensor,
    eps: float,
    fixed: Tensor | None,
    cap: float,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, Tensor]:
    """(values [T, E], scale float32 [T, 1]) of the norm of x, or of residual + x, which then lies
    in residual (contiguous). dtype: of the values; another one is for tests."""
    rows, width = x_TE.shape
    out, scale = _target(rows, width, x_TE, dtype)
    block = triton.next_power_of_2(width)
    _norm[(rows,)](
        x_TE, x_TE if residual_TE is None else residual_TE, weight_E, out, scale,
        scale if fixed is None else fixed, eps, cap, width, x_TE.stride(0),
        ADD=residual_TE is not None, FIXED=fixed is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return out, scale


def silu_mul(
    x_TI2: Tensor, fixed: Tensor | None, cap: float, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    """(values [T, I], scale float32 [T, 1]) of silu(left half) * right half."""
    rows, width = x_TI2.shape[0], x_TI2.shape[1] // 2
    out, scale = _target(rows, width, x_TI2, dtype)
    block = triton.next_power_of_2(width)
    _silu_mul[(rows,)](
        x_TI2, out, scale, scale if fixed is None else fixed, cap, width, x_TI2.stride(0),
        FIXED=fixed is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return out, scale
