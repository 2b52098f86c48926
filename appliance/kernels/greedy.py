"""The first largest of each row of logits, read once by all multiprocessors however few the rows.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512
_PROGRAMS = 4224
"""Enough that the last of them to run are few of all: 32 for each of 132 multiprocessors."""
_PARTS = 256
"""Most parts of a row."""
_LAST = tl.constexpr(2147483647)


@triton.jit
def _further(logits, at, vocab, best, index):
    """One block more; what is as large as the best before it does not take its place."""
    value = tl.load(logits + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    value = tl.where(value != value, float("inf"), value)
    larger = value > best
    return tl.where(larger, value, best), tl.where(larger, at, index)


@triton.jit(do_not_specialize=["blocks"])
def _part(logits, stride, best_value, best_index, vocab, blocks, BLOCK: tl.constexpr):
    """The first largest of `blocks` blocks of one row, two of them on their way at a time."""
    row = tl.program_id(0).to(tl.int64)
    place = row * tl.num_programs(1) + tl.program_id(1)
    begin = tl.program_id(1) * blocks * BLOCK
    at = begin + tl.arange(0, BLOCK)
    logits += row * stride
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    index = at
    for _ in range(0, blocks, 2):
        best, index = _further(logits, at, vocab, best, index)
        best, index = _further(logits, at + BLOCK, vocab, best, index)
        at += 2 * BLOCK
    largest = tl.max(best, 0)
    tl.store(best_value + place, largest)
    tl.store(best_index + place, tl.min(tl.where(best == largest, index, _LAST), 0))


@triton.jit(do_not_specialize=["parts", "otherwise"])
def _row(best_value, best_index, out, parts, otherwise, PARTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PARTS)
    value = tl.load(best_value + row * parts + at, mask=at < parts, other=float("-inf"))
    index = tl.load(best_index + row * parts + at, mask=at < parts, other=_LAST)
    largest = tl.max(value, 0)
    first = tl.min(tl.where(value == largest, index, _LAST), 0)
    tl.store(out + row, tl.where(tl.abs(largest) < float("inf"), first, otherwise).to(tl.int64))


def first_largest(logits_BV: Tensor, otherwise: int) -> Tensor:
    """As Ops.first_largest says. Two kernels and no wait: may be captured."""
    rows, vocab = logits_BV.shape
    total = triton.cdiv(vocab, _BLOCK)
    wanted = max(1, min(_PARTS, total // 2, _PROGRAMS // max(1, rows)))
    blocks = 2 * triton.cdiv(total, 2 * wanted)
    parts = triton.cdiv(total, blocks)
    value = torch.empty((rows, parts), dtype=torch.float32, device=logits_BV.device)
    index = torch.empty((rows, parts), dtype=torch.int32, device=logits_BV.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits_BV.device)
    if rows:
        _part[(rows, parts)](
            logits_BV, logits_BV.stride(0), value, index, vocab, blocks,
            BLOCK=_BLOCK, num_warps=2,
        )  # fmt: skip
        _row[(rows,)](value, index, out, parts, otherwise, PARTS=_PARTS, num_warps=1)
    return out
