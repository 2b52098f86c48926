"""Rotary embedding, and K and V to their pages in the format the pages have, in one pass.

Shapes: T tokens, H query heads, K kv heads, D head size, P page size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


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
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """One program turns one head of one token; programs past the q heads write k and v."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half = tl.arange(0, D // 2)
    source = qkv + token * stride_token + head * D
    left = tl.load(source + half).to(tl.float32)
    right = tl.load(source + D // 2 + half).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(left * left) + tl.sum(right * right)) / D + eps)
        weight = q_weight if head < H else k_weight
        # the norm rounds to the model's dtype before its weight, as the models were trained
        left = (left * scale).to(qkv.dtype.element_ty) * tl.load(weight + half)
        right = (right * scale).to(qkv.dtype.element_ty) * tl.load(weight + D // 2 + half)
        left, right = left.to(tl.float32), right.to(tl.float32)
    angles = cos_sin + tl.load(positions + token).to(tl.int64) * D
    cos = tl.load(angles + half)
    sin = tl.load(angles + D // 2 + half)
    out_left = left * cos - right * sin
    out_right = right * cos + left * sin
    if head < H:
        target = q_out + (token * H + head) * D
        tl.store(target + half, out_left.to(q_out.dtype.element_ty))
        tl.store(target + D // 2 + half, out_right.to(q_out.dtype.element_ty))
    else:
        row = tl.load(kv_rows + token).to(tl.int64)
        place = (row * K + head - H) * D
        kind = k_pages.dtype.element_ty
        tl.store(k_pages + place + half, _stored(out_left, k_scale, LARGEST).to(kind))
        tl.store(k_pages + place + D // 2 + half, _stored(out_right, k_scale, LARGEST).to(kind))
        values = source + K * D
        low = _stored(tl.load(values + half), v_scale, LARGEST)
        high = _stored(tl.load(values + D // 2 + half), v_scale, LARGEST)
        tl.store(v_pages + place + half, low.to(kind))
        tl.store(v_pages + place + D // 2 + half, high.to(kind))


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
) -> Tensor:
    """As Ops.rope_store says. largest: where stored values are clipped; None: by the pages' dtype,
    0: nowhere, and the scales are not used."""
    kv_heads, size = k_pages.shape[2:]
    tokens = qkv.shape[0]
    heads = qkv.shape[1] // size - 2 * kv_heads
    if largest is None:
        narrow = k_pages.dtype.itemsize == 1
        largest = torch.finfo(k_pages.dtype).max if narrow else 0.0
    q = torch.empty((tokens, heads, size), dtype=qkv.dtype, device=qkv.device)
    norm = q_weight_D is not None
    _rope_store[(tokens, heads + kv_heads)](
        qkv, positions_T, cos_sin, kv_rows_T, q, k_pages, v_pages,
        q_weight_D if norm else q, k_weight_D if norm else q, eps, qkv.stride(0),
        k_scale, v_scale, H=heads, K=kv_heads, D=size, NORM=norm, LARGEST=largest, num_warps=1,
    )  # fmt: skip
    return q
