"""Top-k, top-p and min-p of whole vocabularies without sorting them: the smallest value that stays
is found by a search on the axis of values.

One program a row. Values become integers in the same order; an interval that holds the threshold
shrinks to a ninth with each pass over the row, and as soon as few values lie in it, these are
copied and only they are passed over. Every sum is taken in the order of the row, so that a row's
result does not depend on the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_PIVOTS = 8
_FEW = 4096
"""Most values that are copied out of a row."""
LOWEST = tl.constexpr(-0x7F800001)
"""Minus infinity among the ordered integers."""


@triton.jit
def _ordered(x):
    """float32 -> int32 in the same order; both zeros are one value."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _above(source, size, most, pivots, P: tl.constexpr, BLOCK: tl.constexpr):
    """How many values lie above each pivot, and the sum of exp(value - most) over them."""
    count = tl.zeros((P, BLOCK), dtype=tl.float32)
    mass = tl.zeros((P, BLOCK), dtype=tl.float32)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(source + at, mask=at < size, other=float("-inf"))
        above = _ordered(x)[None, :] > pivots[:, None]
        count += above.to(tl.float32)
        mass += tl.where(above, tl.exp(x - most)[None, :], 0.0)
    return tl.sum(count, 1), tl.sum(mass, 1)


@triton.jit
def _copy_between(source, size, low, high, few, BLOCK: tl.constexpr):
    """Values in (low, high] to `few`, in order; gives how many."""
    found = 0
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(source + at, mask=at < size, other=float("-inf"))
        key = _ordered(x)
        inside = (key > low) & (key <= high) & (at < size)
        place = found + tl.cumsum(inside.to(tl.int32), 0) - 1
        tl.store(few + place, x, mask=inside)
        found += tl.sum(inside.to(tl.int32), 0)
    return found


@triton.jit
def _pick(values, index, P: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, P) == index, values, 0), 0)


@triton.jit
def _search(
    row, size, most, target, few, BY_COUNT: tl.constexpr, P: tl.constexpr, FEW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Values are kept while what lies above them (their number, or their mass) is below `target`.

    Gives (low, mass): kept is what lies above low, and its mass; by count, of values that are equal
    to the last one only as many are weighed as make up `target`.
    """
    index = tl.arange(0, P)
    low = tl.full((), LOWEST, dtype=tl.int32)
    high = _ordered(most)
    # most of the mass lies within 30 of the largest value; the first part is the rest of the axis
    steps = most - 4.0 * (P - index).to(tl.float32)
    pivots = tl.where(index == 0, low, _ordered(steps))
    count_high = tl.full((), 0.0, dtype=tl.float32)
    mass_high = tl.full((), 0.0, dtype=tl.float32)
    count_low = tl.full((), -1.0, dtype=tl.float32)  # not known yet
    mass_low = tl.full((), 0.0, dtype=tl.float32)
    base_count = tl.full((), 0.0, dtype=tl.float32)
    base_mass = tl.full((), 0.0, dtype=tl.float32)
    source, left = row, size
    copied = tl.full((), 0, dtype=tl.int32)
    going = tl.full((), 1, dtype=tl.int32)
    while going == 1:
        count, mass = _above(source, left, most, pivots, P, BLOCK)
        count += base_count
        mass += base_mass
        below = (count if BY_COUNT else mass) < target
        top = P - tl.sum(below.to(tl.int32), 0)  # pivots ascend: the first one below the target
        if top < P:
            high = _pick(pivots, top, P)
            count_high = _pick(count, top, P)
            mass_high = _pick(mass, top, P)
        if top > 0:
            low = _pick(pivots, top - 1, P)
            count_low = _pick(count, top - 1, P)
            mass_low = _pick(mass, top - 1, P)
        elif count_low < 0:  # all values are kept
            count_low, mass_low = count_high, mass_high
        inside = count_low - count_high
        wide = high.to(tl.int64) - low.to(tl.int64)
        going = ((inside > 1.0) & (wide > 1)).to(tl.int32)
        if going == 1:
            if (copied == 0) & (inside <= FEW):
                tl.debug_barrier()
                left = _copy_between(row, size, low, high, few, BLOCK)
                tl.debug_barrier()
                source = few
                copied = tl.full((), 1, dtype=tl.int32)
                base_count, base_mass = count_high, mass_high
            spread = low.to(tl.int64) + (wide * (index + 1).to(tl.int64)) // (P + 1)
            pivots = tl.minimum(tl.maximum(spread, low + 1), high - 1).to(tl.int32)
    kept_mass = mass_low
    if BY_COUNT:
        each = (mass_low - mass_high) / tl.maximum(count_low - count_high, 1.0)
        kept_mass = mass_high + (tl.minimum(count_low, target) - count_high) * each
    return low, kept_mass


@triton.jit
def _threshold(
    logits, stride, rows, out, top_k, top_p, min_p, few, size, P: tl.constexpr, FEW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest value, as an ordered integer, that is not kept; LOWEST: all are."""
    program = tl.program_id(0).to(tl.int64)
    row = logits + tl.load(rows + program).to(tl.int64) * stride
    own = few + program * FEW
    k = tl.load(top_k + program)
    p = tl.load(top_p + program)
    least = tl.load(min_p + program)
    most = tl.full((), float("-inf"), dtype=tl.float32)
    mass = tl.full((), 0.0, dtype=tl.float32)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < size, other=float("-inf"))
        larger = tl.maximum(most, tl.max(x, 0))
        # before anything finite came there is nothing to weigh
        safe = tl.where(larger > float("-inf"), larger, 0.0)
        mass = mass * tl.exp(most - safe) + tl.sum(tl.exp(x - safe), 0)
        most = larger
    low = tl.full((), LOWEST, dtype=tl.int32)
    if (most > float("-inf")) & (most < float("inf")):
        if k < size:
            low, mass = _search(row, size, most, k.to(tl.float32), own, True, P, FEW, BLOCK)
        if p < 1.0:
            other, _ = _search(row, size, most, p * mass, own, False, P, FEW, BLOCK)
            low = tl.maximum(low, other)
        if least > 0.0:
            low = tl.maximum(low, _ordered(most + tl.log(least)) - 1)
        # the likeliest stays, whatever is asked
        low = tl.minimum(low, _ordered(most) - 1)
    tl.store(out + program, low)


@triton.jit
def _drop(logits, stride, rows, thresholds, size, BLOCK: tl.constexpr):
    """Minus infinity for what is not above its row's threshold, in place."""
    program = tl.program_id(0)
    row = logits + tl.load(rows + program).to(tl.int64) * stride
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(row + at, mask=at < size, other=0.0)
    dropped = _ordered(x) <= tl.load(thresholds + program)
    tl.store(row + at, tl.full((BLOCK,), float("-inf"), tl.float32), mask=dropped & (at < size))


def keep_likely(
    logits_BV: Tensor,
    rows_R: Tensor,
    top_k_R: Tensor,
    top_p_R: Tensor,
    min_p_R: Tensor,
    most_copied: int = _FEW,
    block: int = _BLOCK,
) -> Tensor:
    """As Ops.keep_likely says. most_copied: values that are copied out of a row, at most; block:
    those that are looked at in one go. Both only change how long it takes."""
    count, vocab = len(rows_R), logits_BV.shape[1]
    few = torch.empty((count, most_copied), dtype=torch.float32, device=logits_BV.device)
    thresholds = torch.empty(count, dtype=torch.int32, device=logits_BV.device)
    _threshold[(count,)](
        logits_BV, logits_BV.stride(0), rows_R, thresholds, top_k_R, top_p_R, min_p_R, few, vocab,
        P=_PIVOTS, FEW=most_copied, BLOCK=block, num_warps=8,
    )  # fmt: skip
    _drop[(count, triton.cdiv(vocab, 4096))](
        logits_BV, logits_BV.stride(0), rows_R, thresholds, vocab, BLOCK=4096, num_warps=8
    )
    return logits_BV
