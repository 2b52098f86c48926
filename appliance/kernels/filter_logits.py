"""Top-k, top-p and min-p of whole vocabularies without sorting them: two passes over the logits.

The first counts each row's values by bin and weighs the row; bounds on what the bins weigh tell in
which of them a threshold can lie. The second drops what lies below these bins and copies what lies
in them; the exact thresholds are searched among these few. Counts are whole and every sum is taken
in the order of the row, so a row's result does not depend on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Launch:
    """What only changes how long it takes; all are powers of two.

    chunks: of values that are looked at to place a row's bins. bins: of its histogram. part:
    values of a row that one program passes over, in blocks of `block` (counting) and `drop_block`
    (dropping). few: most values that are copied out of a row; a row that would need more is
    searched as a whole, by one program.
    """

    chunks: int = 64
    bins: int = 128
    part: int = 16384
    block: int = 4096
    warps: int = 4
    drop_block: int = 512
    drop_warps: int = 4
    few: int = 16384
    find_block: int = 1024
    find_warps: int = 8


LAUNCH = Launch()
"""What serves; `python -m benchmarks.likely_tokens --sweep` times others."""

_BY_ROW = ["rows", "top_k", "top_p", "min_p"]
"""Views of one copy, so where they begin depends on the number of rows; a kernel compiled for each
beginning would stall the first step of 33 rows after one of 32."""
_PIVOTS = 8
_CHUNK = 64
"""Values side by side."""
LOWEST = tl.constexpr(-0x7F800001)
"""Minus infinity among the ordered integers."""
_SLACK = tl.constexpr(4e-6)
"""Relative: what sums in another order may differ by."""
_INTS = tl.constexpr(5)
_K_BIN, _P_LOW, _P_HIGH, _FLOOR, _LEFT = (tl.constexpr(i) for i in range(5))
"""A row's bins that may hold the threshold of top-k (-1: none) and of top-p (from, to; from above
to: none), the first bin that is not dropped, how many values are copied (or _ALL, or _NOTHING)."""
_ALL, _NOTHING = tl.constexpr(-1), tl.constexpr(-2)
_FLOATS = tl.constexpr(6)
_START, _SCALE, _MOST, _MASS, _ABOVE, _LEAST = (tl.constexpr(i) for i in range(6))
"""A row's bins (value of the first, bins per unit), its largest value, the sum of exp(value -
largest), how many values above top-k's bin are not copied, and the least that min-p keeps."""


@triton.jit
def _ordered(x):
    """float32 -> int32 in the same order; both zeros are one value."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _bin(x, start, scale, BINS: tl.constexpr):
    """0: minus infinity. Bin b holds what rounds to step b - 1; the first and the last of them
    also what lies beyond."""
    finite = x > float("-inf")
    step = (tl.where(finite, x, start) - start) * scale
    step = tl.minimum(tl.maximum(step, 0.0), BINS - 2.0)
    # adding 2 ** 23 rounds to a whole number and leaves it in the low bits
    index = (step + 8388608.0).to(tl.int32, bitcast=True) & (BINS - 1)
    return tl.where(finite, index + 1, 0)


@triton.jit
def _pick(values, index, N: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, N) == index, values, 0), 0)


@triton.jit
def _asks(top_k, top_p, min_p, program, size):
    k, p, least = tl.load(top_k + program), tl.load(top_p + program), tl.load(min_p + program)
    return (k < size) | (p < 1.0) | (least > 0.0)


@triton.jit(do_not_specialize_on_alignment=_BY_ROW)
def _place_bins(
    logits, stride, rows, floats, size, BINS: tl.constexpr, CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Bins from the largest of some values down to as far below their mean as that is above it."""
    program = tl.program_id(0)
    row = logits + tl.load(rows + program).to(tl.int64) * stride
    index = tl.arange(0, CHUNKS * CHUNK)
    at = index // CHUNK * (size // CHUNKS) + index % CHUNK
    x = tl.load(row + at, mask=at < size, other=float("-inf"))
    finite = (x > float("-inf")) & (x < float("inf"))
    found = tl.sum(finite.to(tl.int32), 0)
    largest = tl.max(tl.where(finite, x, float("-inf")), 0)
    largest = tl.where(found > 0, largest, 0.0)
    mean = tl.sum(tl.where(finite, x, 0.0), 0) / tl.maximum(found, 1).to(tl.float32)
    wide = 2 * (largest - mean)
    wide = tl.where(wide > 1.0, tl.minimum(wide, 200.0), 1.0)
    tl.store(floats + program * _FLOATS + _START, largest - wide)
    scale = tl.where(found > 0, (BINS - 2.0) / wide, 0.0)
    tl.store(floats + program * _FLOATS + _SCALE, scale)


@triton.jit(do_not_specialize_on_alignment=_BY_ROW)
def _count(
    logits, stride, rows, top_k, top_p, min_p, floats, counts, sums, size, BINS: tl.constexpr,
    PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one part of one row: values by bin; the largest, and the sums of exp(value - largest)
    over all and over the last bin."""
    part, program = tl.program_id(0), tl.program_id(1)
    if _asks(top_k, top_p, min_p, program, size):
        row = logits + tl.load(rows + program).to(tl.int64) * stride
        start = tl.load(floats + program * _FLOATS + _START)
        scale = tl.load(floats + program * _FLOATS + _SCALE)
        found = tl.zeros((BINS,), dtype=tl.int32)
        most = tl.full((), float("-inf"), dtype=tl.float32)
        mass = tl.full((), 0.0, dtype=tl.float32)
        last = tl.full((), 0.0, dtype=tl.float32)
        for first in range(part * PART, tl.minimum(part * PART + PART, size), BLOCK):
            at = first + tl.arange(0, BLOCK)
            x = tl.load(row + at, mask=at < size, other=float("-inf"))
            bins = _bin(x, start, scale, BINS)
            larger = tl.maximum(most, tl.max(x, 0))
            # before anything finite came there is nothing to weigh
            safe = tl.where(larger > float("-inf"), larger, 0.0)
            weight = tl.exp(x - safe)
            before = tl.exp(most - safe)
            mass = mass * before + tl.sum(weight, 0)
            last = last * before + tl.sum(tl.where(bins == BINS - 1, weight, 0.0), 0)
            most = larger
            found += tl.histogram(bins, BINS)
        place = program * tl.num_programs(0) + part
        tl.store(counts + place.to(tl.int64) * BINS + tl.arange(0, BINS), found)
        tl.store(sums + place * 3, most)
        tl.store(sums + place * 3 + 1, mass)
        tl.store(sums + place * 3 + 2, last)


@triton.jit(do_not_specialize_on_alignment=_BY_ROW)
def _choose(
    top_k, top_p, min_p, ints, floats, counts, sums, offsets, size, parts, BINS: tl.constexpr,
    PARTS: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """Which bins may hold a row's thresholds, and where each part's values of these go."""
    program = tl.program_id(0)
    ints += program * _INTS
    floats += program * _FLOATS
    left = tl.full((), _NOTHING, dtype=tl.int32)
    if _asks(top_k, top_p, min_p, program, size):
        k, p, least = tl.load(top_k + program), tl.load(top_p + program), tl.load(min_p + program)
        part, index = tl.arange(0, PARTS), tl.arange(0, BINS)
        place = (program * parts + part).to(tl.int64)
        there = part < parts
        mosts = tl.load(sums + place * 3, mask=there, other=float("-inf"))
        most = tl.max(mosts, 0)
        if (most > float("-inf")) & (most < float("inf")):
            shares = tl.exp(mosts - most)
            mass = tl.sum(shares * tl.load(sums + place * 3 + 1, mask=there, other=0.0), 0)
            last = tl.sum(shares * tl.load(sums + place * 3 + 2, mask=there, other=0.0), 0)
            by_part = tl.load(
                counts + place[:, None] * BINS + index[None, :],
                mask=there[:, None] & (index > 0)[None, :], other=0,
            )  # fmt: skip
            n = tl.sum(by_part, 0)
            all_finite = tl.sum(n, 0)
            upward = all_finite - tl.cumsum(n, 0) + n  # in this bin and above it
            by_count = (k < size) & (all_finite >= k)
            k_bin = tl.where(by_count, tl.sum((upward >= tl.maximum(k, 1)).to(tl.int32), 0) - 1, -1)
            above = _pick(upward, k_bin + 1, BINS)

            # no value of a bin weighs less than `light` or more than `heavy`
            scale = tl.load(floats + _SCALE)
            width = tl.where(scale > 0.0, 1.0 / tl.where(scale > 0.0, scale, 1.0), 0.0)
            away = tl.load(floats + _START) - most
            light = tl.exp(tl.minimum(away + (index.to(tl.float32) - 1.51) * width, 0.0))
            heavy = tl.exp(tl.minimum(away + (index.to(tl.float32) - 0.49) * width, 0.0))
            light = tl.where(index <= 1, 0.0, light)
            heavy = tl.where(index == BINS - 1, 1.0, heavy)
            heavy = tl.where(scale > 0.0, heavy, 1.0)
            fewest = tl.where(index == BINS - 1, last, n * light) * (1 - _SLACK)
            utmost = tl.where(index == BINS - 1, last, n * heavy) * (1 + _SLACK)
            # what a bin and those above it weigh, added from above or taken away from below
            under = mass * (1 - _SLACK) - (tl.cumsum(utmost, 0) - utmost)
            over = mass * (1 + _SLACK) - (tl.cumsum(fewest, 0) - fewest)
            under = tl.maximum(tl.cumsum(fewest, 0, reverse=True), under)
            over = tl.minimum(tl.cumsum(utmost, 0, reverse=True), over)
            total_under, total_over = mass * (1 - _SLACK), mass * (1 + _SLACK)
            if by_count:
                taken = (k - above).to(tl.float32)
                total_under = _pick(under, k_bin + 1, BINS) + taken * _pick(light, k_bin, BINS)
                total_over = _pick(over, k_bin + 1, BINS) + taken * _pick(heavy, k_bin, BINS)
            highest = tl.max(tl.where(n > 0, index, 0), 0)
            lowest = tl.maximum(k_bin, 1)
            p_high = tl.sum((over >= tl.maximum(p * total_under, 1e-30)).to(tl.int32), 0) - 1
            p_low = tl.sum((under >= tl.maximum(p * total_over, 1e-30)).to(tl.int32), 0) - 1
            p_high = tl.maximum(tl.minimum(p_high, highest), lowest)
            p_low = tl.maximum(tl.minimum(p_low, p_high), lowest)
            p_low = tl.where(p < 1.0, p_low, BINS)
            p_high = tl.where(p < 1.0, p_high, -1)

            by_mass = (index >= p_low) & (index <= p_high)
            wanted = by_mass | (index == k_bin)
            own = tl.sum(tl.where(wanted[None, :], by_part, 0), 1)
            left = tl.sum(own, 0)
            tl.store(offsets + place, tl.cumsum(own, 0) - own, mask=there)
            left = tl.where(left > FEW, _ALL, left)
            # the likeliest stays, whatever is asked
            value = most + tl.minimum(tl.log(tl.where(least > 0.0, least, 1.0)), 0.0)
            tl.store(floats + _LEAST, tl.where(least > 0.0, value, float("-inf")))
            tl.store(ints + _K_BIN, k_bin)
            tl.store(ints + _P_LOW, p_low)
            tl.store(ints + _P_HIGH, p_high)
            tl.store(ints + _FLOOR, tl.where(p < 1.0, tl.maximum(p_low, k_bin), k_bin))
            tl.store(floats + _MOST, most)
            tl.store(floats + _MASS, mass)
            aside = tl.sum(tl.where(by_mass & (index > k_bin), n, 0), 0)
            tl.store(floats + _ABOVE, (above - aside).to(tl.float32))
    tl.store(ints + _LEFT, left)


@triton.jit(do_not_specialize_on_alignment=_BY_ROW)
def _drop_low(
    logits, stride, rows, top_p, ints, floats, offsets, weights, few, places, size,
    BINS: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """Of one part of one row: minus infinity below the bins in question, copies of what is in
    them, and what weighs what lies above all of them, and what is not copied above top-k's bin."""
    # rows in the opposite order: those that were counted last may still be in the cache
    part, program = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    own = ints + program * _INTS
    left = tl.load(own + _LEFT)
    if left >= 0:
        k_bin, floor = tl.load(own + _K_BIN), tl.load(own + _FLOOR)
        p_low, p_high = tl.load(own + _P_LOW), tl.load(own + _P_HIGH)
        p_wide = tl.maximum(p_high + 1 - p_low, 0).to(tl.uint32, bitcast=True)
        start = tl.load(floats + program * _FLOATS + _START)
        scale = tl.load(floats + program * _FLOATS + _SCALE)
        most = tl.load(floats + program * _FLOATS + _MOST)
        least = tl.load(floats + program * _FLOATS + _LEAST)
        weighed = tl.load(top_p + program) < 1.0
        row = logits + tl.load(rows + program).to(tl.int64) * stride
        place = program * tl.num_programs(0) + part
        few += program.to(tl.int64) * FEW
        places += program.to(tl.int64) * FEW
        found = tl.load(offsets + place)
        above = tl.zeros((BLOCK,), dtype=tl.float32)
        others = tl.zeros((BLOCK,), dtype=tl.float32)
        for first in range(part * PART, tl.minimum(part * PART + PART, size), BLOCK):
            at = first + tl.arange(0, BLOCK)
            x = tl.load(row + at, mask=at < size, other=float("-inf"))
            bins = _bin(x, start, scale, BINS)
            # one comparison: what is below p_low wraps around
            wanted = (bins == k_bin) | ((bins - p_low).to(tl.uint32, bitcast=True) < p_wide)
            count = wanted.to(tl.int32)
            here = tl.sum(count, 0)
            if here > 0:  # most blocks hold none where few are kept
                to = found + tl.cumsum(count, 0) - count
                tl.store(few + to, x, mask=wanted)
                tl.store(places + to, at, mask=wanted)
                found += here
            if weighed:
                weight = tl.exp(x - most)
                above += tl.where(bins > p_high, weight, 0.0)
                others += tl.where(wanted | (bins < k_bin), 0.0, weight)
            # what stays is written too: whole sectors are faster than holes
            x = tl.where((bins < floor) | (x < least), float("-inf"), x)
            tl.store(row + at, x, mask=at < size)
        tl.store(weights + place * 2, tl.sum(above, 0))
        tl.store(weights + place * 2 + 1, tl.sum(others, 0))


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
def _search(
    source, size, most, target, low, high, base_count, base_mass, BY_COUNT: tl.constexpr,
    P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Values are kept while what lies above them (their number, or their mass) is below `target`.

    low, high: keys; the largest value that is not kept is above low, if there is one, and not
    above high. base: what is above high, and not in `source`. Gives (low, mass): kept is what lies
    above low, and its mass; by count, of values that are equal to the last one only as many are
    weighed as make up `target`.
    """
    index = tl.arange(0, P)
    wide = high.to(tl.int64) - low.to(tl.int64)
    pivots = (low.to(tl.int64) + wide * index.to(tl.int64) // (P - 1)).to(tl.int32)
    count_high = tl.full((), -1.0, dtype=tl.float32)  # not known yet
    mass_high = tl.full((), 0.0, dtype=tl.float32)
    count_low = tl.full((), -1.0, dtype=tl.float32)
    mass_low = tl.full((), 0.0, dtype=tl.float32)
    going = tl.full((), 1, dtype=tl.int32)
    while going == 1:
        count, mass = _above(source, size, most, pivots, P, BLOCK)
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
        if count_low < 0:  # all values are kept
            count_low, mass_low = count_high, mass_high
        if count_high < 0:  # none is
            count_high, mass_high = count_low, mass_low
        wide = high.to(tl.int64) - low.to(tl.int64)
        going = ((count_low - count_high > 1.0) & (wide > 1)).to(tl.int32)
        if going == 1:
            spread = low.to(tl.int64) + (wide * (index + 1).to(tl.int64)) // (P + 1)
            pivots = tl.minimum(tl.maximum(spread, low + 1), high - 1).to(tl.int32)
    kept_mass = mass_low
    if BY_COUNT:
        each = (mass_low - mass_high) / tl.maximum(count_low - count_high, 1.0)
        kept_mass = mass_high + (tl.minimum(count_low, target) - count_high) * each
    return low, kept_mass


@triton.jit
def _edges(first, last, start, scale, most, BINS: tl.constexpr):
    """A key that lies below every value of bin `first`, and one below no value of bin `last`."""
    low = tl.full((), LOWEST, dtype=tl.int32)
    high = _ordered(most)
    # margins: a hundredth of a bin for how _bin rounds, some floats for how this does
    if first > 1:
        low = _ordered(start + (first.to(tl.float32) - 1.51) / scale) - 4
    if (last < BINS - 1) & (scale > 0.0):
        high = tl.minimum(_ordered(start + (last.to(tl.float32) - 0.49) / scale) + 4, high)
    return tl.minimum(low, high - 1), high


@triton.jit(do_not_specialize_on_alignment=_BY_ROW)
def _settle(
    logits, stride, rows, top_k, top_p, ints, floats, weights, few, places, size, parts,
    BINS: tl.constexpr, PARTS: tl.constexpr, FEW: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A row's thresholds among its copied values (or all), and minus infinity for what is left."""
    program = tl.program_id(0).to(tl.int64)
    ints += program * _INTS
    floats += program * _FLOATS
    copied = tl.load(ints + _LEFT)
    row = logits + tl.load(rows + program).to(tl.int64) * stride
    few += program * FEW
    places += program * FEW
    if (copied > 0) | (copied == _ALL):
        most, mass = tl.load(floats + _MOST), tl.load(floats + _MASS)
        start, scale = tl.load(floats + _START), tl.load(floats + _SCALE)
        k_bin = tl.load(ints + _K_BIN)
        p_low, p_high = tl.load(ints + _P_LOW), tl.load(ints + _P_HIGH)
        source, left = row, size
        count = tl.full((), 0.0, dtype=tl.float32)
        above = tl.full((), 0.0, dtype=tl.float32)
        others = tl.full((), 0.0, dtype=tl.float32)
        if copied > 0:
            source, left = few, copied
            part = tl.arange(0, PARTS)
            weight = weights + (program * parts + part) * 2
            count = tl.load(floats + _ABOVE)
            above = tl.sum(tl.load(weight, mask=part < parts, other=0.0), 0)
            others = tl.sum(tl.load(weight + 1, mask=part < parts, other=0.0), 0)
        low = _ordered(tl.load(floats + _LEAST)) - 1
        if k_bin >= 0:
            k = tl.maximum(tl.load(top_k + program), 1).to(tl.float32)
            under, upper = _edges(k_bin, k_bin, start, scale, most, BINS)
            found, mass = _search(
                source, left, most, k, under, upper, count, others, True, P, BLOCK
            )
            low = tl.maximum(low, found)
        if p_high >= 0:
            target = tl.load(top_p + program) * mass
            under, upper = _edges(p_low, p_high, start, scale, most, BINS)
            found, mass = _search(
                source, left, most, target, under, upper, 0.0, above, False, P, BLOCK
            )
            low = tl.maximum(low, found)
        low = tl.minimum(low, _ordered(most) - 1)
        tl.debug_barrier()
        for first in range(0, left, BLOCK):
            at = first + tl.arange(0, BLOCK)
            x = tl.load(source + at, mask=at < left, other=0.0)
            dropped = (_ordered(x) <= low) & (at < left)
            if copied > 0:
                at = tl.load(places + at, mask=dropped, other=0)
            tl.store(row + at, tl.full((BLOCK,), float("-inf"), tl.float32), mask=dropped)


def keep_likely(
    logits_BV: Tensor,
    rows_R: Tensor,
    top_k_R: Tensor,
    top_p_R: Tensor,
    min_p_R: Tensor,
    launch: Launch = LAUNCH,
) -> Tensor:
    """As Ops.keep_likely says."""
    count, vocab = len(rows_R), logits_BV.shape[1]
    parts = triton.cdiv(vocab, launch.part)
    device = logits_BV.device
    ints = torch.empty((count, _INTS.value), dtype=torch.int32, device=device)
    floats = torch.empty((count, _FLOATS.value), dtype=torch.float32, device=device)
    counts = torch.empty((count, parts, launch.bins), dtype=torch.int32, device=device)
    sums = torch.empty((count, parts, 3), dtype=torch.float32, device=device)
    offsets = torch.empty((count, parts), dtype=torch.int32, device=device)
    weights = torch.empty((count, parts, 2), dtype=torch.float32, device=device)
    few = torch.empty((count, launch.few), dtype=torch.float32, device=device)
    places = torch.empty((count, launch.few), dtype=torch.int32, device=device)
    whole = logits_BV, logits_BV.stride(0), rows_R
    asked = top_k_R, top_p_R, min_p_R
    padded = triton.next_power_of_2(parts)
    _place_bins[(count,)](
        *whole, floats, vocab, BINS=launch.bins, CHUNKS=launch.chunks, CHUNK=_CHUNK, num_warps=8
    )
    _count[(parts, count)](
        *whole, *asked, floats, counts, sums, vocab,
        BINS=launch.bins, PART=launch.part, BLOCK=launch.block, num_warps=launch.warps,
    )  # fmt: skip
    _choose[(count,)](
        *asked, ints, floats, counts, sums, offsets, vocab, parts,
        BINS=launch.bins, PARTS=padded, FEW=launch.few, num_warps=4,
    )  # fmt: skip
    _drop_low[(parts, count)](
        *whole, top_p_R, ints, floats, offsets, weights, few, places, vocab,
        BINS=launch.bins, PART=launch.part, BLOCK=launch.drop_block, FEW=launch.few,
        num_warps=launch.drop_warps,
    )  # fmt: skip
    _settle[(count,)](
        *whole, top_k_R, top_p_R, ints, floats, weights, few, places, vocab, parts,
        BINS=launch.bins, PARTS=padded, FEW=launch.few, P=_PIVOTS, BLOCK=launch.find_block,
        num_warps=launch.find_warps,
    )  # fmt: skip
    return logits_BV
