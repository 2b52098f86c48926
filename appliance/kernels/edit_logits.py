"""Penalties and masks of rows of logits, in place, in one pass each.

In plain torch each operation of them reads and writes the whole vocabulary; here logits are touched
only where they change.

Shapes: S rows of logits, R of them that are changed, V vocabulary, W = ceil(V / 32).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


@triton.jit
def _penalize(
    logits, at, table, rows, repetition, frequency, presence, V, stride, table_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + place).to(tl.int64)
    seen = tl.load(table + row * table_stride + token, mask=token < V, other=0).to(tl.int32)
    changed = seen != 0
    logits += tl.load(at + place).to(tl.int64) * stride
    value = tl.load(logits + token, mask=changed, other=0.0)
    turned = tl.load(repetition + place)
    value = tl.where(value > 0, tl.math.div_rn(value, turned), value * turned)
    count = seen >> 1
    value -= count.to(tl.float32) * tl.load(frequency + place)
    value -= tl.where(count > 0, tl.load(presence + place), 0.0)
    tl.store(logits + token, value, mask=changed)


@triton.jit
def _allow(logits, at, bits, V, W, stride, BLOCK: tl.constexpr):
    place = tl.program_id(0)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(bits + place.to(tl.int64) * W + token // 32, mask=token < V, other=-1)
    logits += tl.load(at + place).to(tl.int64) * stride
    tl.store(logits + token, float("-inf"), mask=(token < V) & ((word >> (token % 32)) & 1 == 0))


def penalize(
    logits_SV: Tensor,
    at_R: Tensor,
    table: Tensor,
    rows_R: Tensor,
    repetition_R: Tensor,
    frequency_R: Tensor,
    presence_R: Tensor,
) -> None:
    """As Ops.penalize says; logits float32, any stride between rows."""
    vocab = logits_SV.shape[1]
    if len(at_R):
        _penalize[(len(at_R), triton.cdiv(vocab, _BLOCK))](
            logits_SV, at_R, table, rows_R, repetition_R, frequency_R, presence_R, vocab,
            logits_SV.stride(0), table.stride(0), BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip


def allow(logits_SV: Tensor, at_R: Tensor, bits_RW: Tensor) -> None:
    """As Ops.allow says; bits contiguous."""
    vocab = logits_SV.shape[1]
    if len(at_R):
        _allow[(len(at_R), triton.cdiv(vocab, _BLOCK))](
            logits_SV, at_R, bits_RW, vocab, bits_RW.shape[1], logits_SV.stride(0),
            BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
