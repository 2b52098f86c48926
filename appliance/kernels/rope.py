"""Rotary embedding, and K and V to their pages in the format the pages have, in one pass.

Shapes: T tokens, H query heads, K kv heads, D head size, P page size.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from appliance.kernels.dependent import behind, launched


@triton.jit
def _stored(value, scale, LARGEST: tl.constexpr):
    """What a page takes of a value: clipped and scaled for an 8-bit format, else as it is."""
    if LARGEST > 0:
        value = tl.minimum(tl.maximum(value.to(tl.float32) / scale, -LARGEST), LARGEST)
    return value


@triton.jit
def _rope_store(
    qkv, positions, cos_sin, kv_rows, q_out, k_pages, v_pages, q_weight, k_weight, eps,
    stride_token, k_scale, v_scale,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, N: tl.constexpr, NORM: tl.constexpr,
    LARGEST: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """One program turns N heads of one token; programs past the q heads write k and v. DEPENDENT:
    launched before the kernel in front has ended."""
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * N
    half = tl.arange(0, D // 2)
    place = tl.arange(0, N)[:, None] * D + half[None, :]
    source = qkv + token * stride_token + first * D + place
    angles = cos_sin + tl.load(positions + token).to(tl.int64) * D
    cos = tl.load(angles + half)[None, :]
    sin = tl.load(angles + D // 2 + half)[None, :]
    if DEPENDENT:
        behind()
    left = tl.load(source).to(tl.float32)
    right = tl.load(source + D // 2).to(tl.float32)
    if NORM:
        total = tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)
        scale = tl.rsqrt(total / D + eps)[:, None]
        weight = q_weight if first < H else k_weight
        # the norm rounds to the model's dtype before its weight, as the models were trained
        left = (left * scale).to(qkv.dtype.element_ty) * tl.load(weight + half)[None, :]
        right = (right * scale).to(qkv.dtype.element_ty) * tl.load(weight + D // 2 + half)[None, :]
        left, right = left.to(tl.float32), right.to(tl.float32)
    out_left = left * cos - right * sin
    out_right = right * cos + left * sin
    if first < H:
        target = q_out + (token * H + first) * D + place
        tl.store(target, out_left.to(q_out.dtype.element_ty))
        tl.store(target + D // 2, out_right.to(q_out.dtype.element_ty))
    else:
        row = tl.load(kv_rows + token).to(tl.int64)
        stored_at = (row * K + first - H) * D + place
        kind = k_pages.dtype.element_ty
        tl.store(k_pages + stored_at, _stored(out_left, k_scale, LARGEST).to(kind))
        tl.store(k_pages + stored_at + D // 2, _stored(out_right, k_scale, LARGEST).to(kind))
        low = _stored(tl.load(source + K * D), v_scale, LARGEST)
        high = _stored(tl.load(source + K * D + D // 2), v_scale, LARGEST)
        tl.store(v_pages + stored_at, low.to(kind))
        tl.store(v_pages + stored_at + D // 2, high.to(kind))


def rope_store(
    qkv: Tensor,
    positions_T: Tensor,
    cos_sin: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    kv_rows_T: Tensor,
    q_weight_D: Tensor | None,
    k_weight_D: Tensor | None,
    eps: float,
    k_scale: float,
    v_scale: float,
    largest: float | None = None,
    dependent: bool = False,
) -> Tensor:
    """As Ops.rope_store says. largest: where stored values are clipped; None: by the pages' dtype,
    0: nowhere, and the scales are not used. dependent: it may begin before the kernel in front
    has ended, whose result qkv alone is (GPUs since Hopper)."""
    kv_heads, size = k_pages.shape[2:]
    tokens = qkv.shape[0]
    heads = qkv.shape[1] // size - 2 * kv_heads
    if largest is None:
        narrow = k_pages.dtype.itemsize == 1
        largest = torch.finfo(k_pages.dtype).max if narrow else 0.0
    q = torch.empty((tokens, heads, size), dtype=qkv.dtype, device=qkv.device)
    norm = q_weight_D is not None
    together = heads_together(heads, kv_heads)
    _rope_store[(tokens, (heads + kv_heads) // together)](
        qkv, positions_T, cos_sin, kv_rows_T, q, k_pages, v_pages,
        q_weight_D if norm else q, k_weight_D if norm else q, eps, qkv.stride(0),
        k_scale, v_scale, H=heads, K=kv_heads, D=size, N=together, NORM=norm, LARGEST=largest,
        DEPENDENT=dependent, num_warps=max(1, together // 2), **launched(dependent),
    )  # fmt: skip
    return q


def heads_together(heads: int, kv_heads: int) -> int:
    """Heads that one program turns: a power of two that divides both."""
    return math.gcd(heads, kv_heads, 8)
