"""Norms of few tokens, alone and with the residual sum before them: their kernel lets the next one
begin at once, so that a matmul behind it asks for its weights meanwhile.

Shapes: T tokens, E hidden.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from appliance.kernels.dependent import behind, launched

MAX_ROWS = 64
"""More tokens take longer than what comes behind can hide."""


@triton.jit
def summed(x, residual, first, at, ok, ADD: tl.constexpr):
    """A token's values, of which x is where it lies, in float32; ADD: those of the residual sum,
    which then lies in residual from `first` on and counts as it lies there."""
    value = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
    if ADD:
        place = residual + first + at
        value += tl.load(place, mask=ok, other=0.0).to(tl.float32)
        kept = value.to(x.dtype.element_ty)
        tl.store(place, kept, mask=ok)
        value = kept.to(tl.float32)
    return value


@triton.jit
def _norm(
    x, residual, weight, out, eps, E,
    ADD: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    ok = at < E
    scale = tl.load(weight + at, mask=ok, other=0.0).to(tl.float32)
    if DEPENDENT:
        behind()
    value = summed(x + row * E, residual, row * E, at, ok, ADD)
    value *= tl.rsqrt(tl.sum(value * value, 0) / E + eps)
    tl.store(out + row * E + at, (value * scale).to(out.dtype.element_ty), mask=ok)


def norm(
    x_TE: Tensor,
    residual_TE: Tensor | None,
    weight_E: Tensor,
    eps: float,
    dependent: bool = False,
) -> Tensor:
    """rms_norm of x, or of residual + x, which then lies in residual; both contiguous. dependent:
    it may begin before the kernel in front has ended."""
    rows, width = x_TE.shape
    out = torch.empty_like(x_TE)
    block = triton.next_power_of_2(width)
    _norm[(rows,)](
        x_TE, x_TE if residual_TE is None else residual_TE, weight_E, out, eps, width,
        ADD=residual_TE is not None, BLOCK=block, DEPENDENT=dependent,
        num_warps=min(16, max(4, block // 512)), **launched(dependent),
    )  # fmt: skip
    return out
