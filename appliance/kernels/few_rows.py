"""A decoder layer for few rows as five kernels, each of which starts before the last has ended.

With few rows the time of a pass is that of reading its weights, and what is lost is lost between
kernels: while one drains and the next fills its pipeline, the memory stands still. So norms,
activation and residual sums are part of the matmul beside them, and each kernel is launched as a
programmatic dependent: while its predecessor runs it fetches its first weights into the cache,
which depend on nothing, and only then waits.

Shapes: M rows, K columns in, N columns out; weights [N, K]. Shapes of attention as in ops.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_ROWS = 16
LINE = 128
"""Bytes of a line of the cache."""


class Tile(NamedTuple):
    """rows: band of W a program holds. depth: columns a step reads. stages, warps: of the pipeline.
    ahead: steps of W fetched into the cache before the predecessor's end."""

    rows: int
    depth: int
    stages: int
    warps: int
    ahead: int


TILES = {
    "qkv": Tile(32, 256, 4, 4, 4),
    "out": Tile(32, 256, 4, 4, 4),
    "gate_up": Tile(16, 256, 4, 4, 4),
    "down": Tile(32, 256, 4, 4, 4),
}
"""What each matmul of a layer is laid out in, by the place it has there: of an 8B layer's shape."""

SPLITS = 8
"""Runs that the tokens of one row are divided into."""


def tile_for(place: str, outs: int, ins: int, wide: bool = True) -> Tile:
    """The tile of `place`, narrowed to [outs, ins]. wide: of weights of two bytes, not of one.
    ValueError when no tile divides them."""
    tile = TILES[place] if wide else TILES[place]._replace(depth=2 * TILES[place].depth)
    rows = next((r for r in (tile.rows, 32, 16) if r <= tile.rows and outs % r == 0), 0)
    depth = next(
        (d for d in (tile.depth, 512, 256, 128, 64) if d <= tile.depth and ins % d == 0), 0
    )
    if not rows or not depth:
        raise ValueError(f"no tile divides [{outs}, {ins}]")
    return tile._replace(rows=rows, depth=depth)


class Form(NamedTuple):
    """How rows are handed from kernel to kernel: their dtype, and the share of their size."""

    dtype: torch.dtype
    unit: float

    @classmethod
    def against(cls, weight: Tensor, dtype: torch.dtype) -> Form:
        """For matmuls with weights like this one, in a model of `dtype`.

        8-bit weights become float16 by one instruction and bfloat16 by three, so rows are float16
        against those, at a sixteenth of their size for the sake of outliers.
        """
        if weight.element_size() > 1 or dtype.itemsize > 2:
            return cls(dtype, 1.0)
        return cls(torch.float16, 0.0625)


class Carried(NamedTuple):
    """The residual sum between two blocks: h [M, E]; h times the weight of the norm that follows,
    [M, E] in the form handed on; and sums of h's squares by piece, float32 [pieces, M]."""

    h: Tensor
    weighed: Tensor
    squares: Tensor


@triton.jit
def _fetch(w_at):
    """Asks for the lines at these addresses and does not wait for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [w_at], dtype=tl.int32, is_pure=False,
        pack=1,
    )  # fmt: skip


@triton.jit
def _formed(value, kind, UNIT: tl.constexpr):
    if UNIT != 1.0:
        value = tl.clamp(value * UNIT, -65504.0, 65504.0)
    return value.to(kind)


@triton.jit
def _begin(
    h, norm_weight, weighed, squares, E, UNIT: tl.constexpr, BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    ok = at < E
    weight = tl.load(norm_weight + at, mask=ok, other=0.0).to(tl.float32)
    if CHAINED:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    value = tl.load(h + row * E + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(weighed + row * E + at, _formed(value * weight, weighed.dtype.element_ty, UNIT), ok)
    tl.store(squares + row, tl.sum(value * value))


@triton.jit(do_not_specialize=["M", "pieces"])
def _linear(
    x, w, w_scale, squares, add, next_weight, out, weighed, squares_out, M, N, K, pieces, eps,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr,
    ADD: tl.constexpr, SCALED: tl.constexpr, UNIT: tl.constexpr, CHAINED: tl.constexpr,
    AHEAD: tl.constexpr, LINE_K: tl.constexpr,
):  # fmt: skip
    """One band of W against all rows. GATED: W holds N gate rows, then N up rows. SCALED: W's rows
    are to be multiplied by w_scale. Both scales are applied at the end: a sum of products is linear
    in them, and what is done once a program does not slow the reading of W."""
    kind = x.dtype.element_ty
    band = tl.program_id(0)
    m = tl.arange(0, BM)
    n = band * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    rows = w + n[:, None].to(tl.int64) * K
    up = rows + N.to(tl.int64) * K
    if CHAINED:
        if AHEAD > 0:
            line = tl.arange(0, BK // LINE_K) * LINE_K
            for step in tl.static_range(AHEAD):
                _fetch(rows + step * BK + line[None, :])
                if GATED:
                    _fetch(up + step * BK + line[None, :])
        tl.extra.cuda.gdc_wait()
        # after the wait: else kernels that only wait would pile up on the multiprocessors
        tl.extra.cuda.gdc_launch_dependents()
    row_ok = (m < M)[:, None]
    x_at = x + m[:, None] * K + k[None, :]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    other = tl.zeros((BM, BN), dtype=tl.float32)
    for first in range(0, K, BK):
        tile_w = tl.load(rows + first + k[None, :], eviction_policy="evict_first")
        tile_x = tl.load(x_at + first, mask=row_ok, other=0.0)
        total = tl.dot(tile_x, tl.trans(tile_w.to(kind)), total)
        if GATED:
            tile_up = tl.load(up + first + k[None, :], eviction_policy="evict_first")
            other = tl.dot(tile_x, tl.trans(tile_up.to(kind)), other)
    if UNIT != 1.0:
        total *= 1.0 / UNIT
        other *= 1.0 / UNIT
    if NORM:
        sums = tl.zeros((BM,), dtype=tl.float32)
        for piece in range(0, pieces, 64):
            p = piece + tl.arange(0, 64)
            there = (p < pieces)[:, None] & (m < M)[None, :]
            sums += tl.sum(tl.load(squares + p[:, None] * M + m[None, :], there, other=0.0), 0)
        scale = tl.rsqrt(sums / K + eps)[:, None]
        total *= scale
        other *= scale
    if SCALED:
        total *= tl.load(w_scale + n)[None, :]
        if GATED:
            other *= tl.load(w_scale + N + n)[None, :]
    place = m[:, None] * N + n[None, :]
    if GATED:
        total = total * tl.sigmoid(total) * other
        tl.store(out + place, _formed(total, out.dtype.element_ty, UNIT), row_ok)
    elif ADD:
        total += tl.load(add + place, row_ok, other=0.0).to(tl.float32)
        tl.store(out + place, total.to(out.dtype.element_ty), row_ok)
        value = total * tl.load(next_weight + n)[None, :].to(tl.float32)
        tl.store(weighed + place, _formed(value, weighed.dtype.element_ty, UNIT), row_ok)
        tl.store(squares_out + band * M + m, tl.sum(total * total, 1), m < M)
    else:
        tl.store(out + place, total.to(out.dtype.element_ty), row_ok)


@triton.jit
def _turned(source, cos, sin, norm_weight, eps, ok, D: tl.constexpr, NORM: tl.constexpr):
    """Heads at `source` [R, 1], normed and turned, as two halves [R, D / 2]."""
    half = tl.arange(0, D // 2)[None, :]
    kind = source.dtype.element_ty
    left = tl.load(source + half, mask=ok, other=0.0).to(tl.float32)
    right = tl.load(source + D // 2 + half, mask=ok, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(left * left, 1) + tl.sum(right * right, 1)) / D + eps)[:, None]
        left = (left * scale).to(kind) * tl.load(norm_weight + half)
        right = (right * scale).to(kind) * tl.load(norm_weight + D // 2 + half)
        left, right = left.to(tl.float32), right.to(tl.float32)
    return (left * cos - right * sin).to(kind), (right * cos + left * sin).to(kind)


@triton.jit
def _attend(
    qkv, positions, cos_sin, q_weight, k_weight, eps, k_pages, v_pages, indptr, indices, out,
    parts, part_max, part_sum, arrived, stride_token, softmax_scale,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, GROUP: tl.constexpr,
    BT: tl.constexpr, SPLITS: tl.constexpr, NORM: tl.constexpr, UNIT: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """One run of one row's tokens against the query heads of one kv head; the last of a row's
    programs to come merges them. GROUP: query heads of a kv head, at least 16 by padding."""
    row = tl.program_id(0)
    kv = tl.program_id(1)
    split = tl.program_id(2)
    if CHAINED:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    heads: tl.constexpr = H // K
    position = tl.load(positions + row).to(tl.int32)
    share = tl.cdiv(tl.cdiv(position + 1, SPLITS), BT) * BT
    begin = split * share
    end = tl.minimum(begin + share, position + 1)
    pages = indices + tl.load(indptr + row)
    half = tl.arange(0, D // 2)[None, :]
    d = tl.arange(0, D)[None, :]
    angles = cos_sin + position.to(tl.int64) * D
    cos = tl.load(angles + half)
    sin = tl.load(angles + D // 2 + half)
    g = tl.arange(0, GROUP)
    g_ok = (g < heads)[:, None]
    token = qkv + row.to(tl.int64) * stride_token
    q_left, q_right = _turned(
        token + (kv * heads + g)[:, None] * D, cos, sin, q_weight, eps, g_ok, D, NORM
    )
    best = tl.full((GROUP,), float("-inf"), dtype=tl.float32)
    mass = tl.zeros((GROUP,), dtype=tl.float32)
    total = tl.zeros((GROUP, D), dtype=tl.float32)
    for first in range(begin, tl.minimum(end, position), BT):
        t = first + tl.arange(0, BT)
        ok = (t < end) & (t < position)
        page = tl.load(pages + t // P, mask=ok, other=0).to(tl.int64)
        place = ((page * P + t % P) * K + kv)[:, None] * D
        k_left = tl.load(k_pages + place + half, mask=ok[:, None], other=0.0)
        k_right = tl.load(k_pages + place + D // 2 + half, mask=ok[:, None], other=0.0)
        scores = tl.dot(q_left, tl.trans(k_left)) + tl.dot(q_right, tl.trans(k_right))
        scores = tl.where(ok[None, :], scores * softmax_scale, float("-inf"))
        top = tl.maximum(best, tl.max(scores, 1))
        shrink = tl.exp(best - top)
        weight = tl.exp(scores - top[:, None])
        v = tl.load(v_pages + place + d, mask=ok[:, None], other=0.0)
        total = tl.dot(weight.to(v.dtype), v, total * shrink[:, None])
        mass = mass * shrink + tl.sum(weight, 1)
        best = top
    if (begin <= position) & (position < end):
        # the token of this step: written to its page, and attended from registers
        one = tl.zeros((1, 1), dtype=tl.int32)
        k_left, k_right = _turned(
            token + (H + kv) * D + one, cos, sin, k_weight, eps, one == 0, D, NORM
        )
        v = tl.load(token + (H + K + kv) * D + d)
        page = tl.load(pages + position // P).to(tl.int64)
        place = ((page * P + position % P) * K + kv) * D
        tl.store(k_pages + place + half, k_left)
        tl.store(k_pages + place + D // 2 + half, k_right)
        tl.store(v_pages + place + d, v)
        score = tl.sum(q_left.to(tl.float32) * k_left.to(tl.float32), 1)
        score += tl.sum(q_right.to(tl.float32) * k_right.to(tl.float32), 1)
        score *= softmax_scale
        top = tl.maximum(best, score)
        shrink = tl.exp(best - top)
        weight = tl.exp(score - top)
        total = total * shrink[:, None] + weight[:, None] * v.to(tl.float32)
        mass = mass * shrink + weight
        best = top
    goal = out + (row * H + kv * heads + g)[:, None] * D + d
    if SPLITS == 1:
        tl.store(goal, _formed(total / mass[:, None], out.dtype.element_ty, UNIT), mask=g_ok)
    else:
        mine = (row * K + kv) * SPLITS
        tl.store(part_max + (mine + split) * GROUP + g, best)
        tl.store(part_sum + (mine + split) * GROUP + g, mass)
        tl.store(parts + ((mine + split) * GROUP + g)[:, None] * D + d, total)
        tl.debug_barrier()  # every thread has written before one of them says so
        before = tl.atomic_add(arrived + row * K + kv, 1, sem="acq_rel")
        if before == SPLITS - 1:
            s = tl.arange(0, SPLITS)
            tops = tl.load(part_max + (mine + s)[:, None] * GROUP + g[None, :])
            top = tl.max(tops, 0)
            total = tl.zeros((GROUP, D), dtype=tl.float32)
            mass = tl.zeros((GROUP,), dtype=tl.float32)
            for i in range(SPLITS):
                shrink = tl.exp(tl.load(part_max + (mine + i) * GROUP + g) - top)
                mass += shrink * tl.load(part_sum + (mine + i) * GROUP + g)
                part = tl.load(parts + ((mine + i) * GROUP + g)[:, None] * D + d)
                total += shrink[:, None] * part
            tl.store(goal, _formed(total / mass[:, None], out.dtype.element_ty, UNIT), mask=g_ok)
            tl.store(arrived + row * K + kv, 0)


def begin(h_ME: Tensor, norm_weight_E: Tensor, form: Form, *, chained: bool = True) -> Carried:
    """The residual sum at the start of the layers, before the norm of this weight."""
    rows, width = h_ME.shape
    weighed = torch.empty((rows, width), dtype=form.dtype, device=h_ME.device)
    squares = torch.empty((1, rows), dtype=torch.float32, device=h_ME.device)
    _begin[(rows,)](
        h_ME, norm_weight_E, weighed, squares, width, UNIT=form.unit,
        BLOCK=triton.next_power_of_2(width), CHAINED=chained, num_warps=8, **_launch(chained),
    )  # fmt: skip
    return Carried(h_ME, weighed, squares)


def normed(
    x: Carried, w_NK: Tensor, scale_N: Tensor | None, tile: Tile, form: Form, eps: float, *,
    gated: bool = False, chained: bool = True,
) -> Tensor:  # fmt: skip
    """norm(x.h) W^T: [M, N] in h's dtype; gated, with W [2 N, K]: silu(norm(h) Wgate^T) *
    (norm(h) Wup^T), [M, N] in the form handed on.

    scale: float32, of W's rows, which may then be 8-bit floats. M ≤ 16; N is divisible by
    tile.rows, K by tile.depth and tile.depth by a line's elements; ValueError otherwise. chained:
    launched before the kernel in front has ended (sm_90 and later), whose results are read after.
    """
    rows, outs = x.h.shape[0], w_NK.shape[0] // (2 if gated else 1)
    kind = form.dtype if gated else x.h.dtype
    out = torch.empty((rows, outs), dtype=kind, device=w_NK.device)
    _launch_linear(
        x.weighed, w_NK, scale_N, tile, form, out, squares=x.squares, eps=eps, gated=gated,
        chained=chained,
    )  # fmt: skip
    return out


def summed(
    x_MK: Tensor, w_NK: Tensor, scale_N: Tensor | None, tile: Tile, form: Form, add_MN: Tensor,
    next_weight_N: Tensor, *, chained: bool = True,
) -> Carried:  # fmt: skip
    """add + x W^T, before the norm of next_weight. x: in the form handed on. As `normed`."""
    rows, outs = add_MN.shape
    out = torch.empty_like(add_MN)
    weighed = torch.empty((rows, outs), dtype=form.dtype, device=w_NK.device)
    squares = torch.empty((outs // tile.rows, rows), dtype=torch.float32, device=w_NK.device)
    done = Carried(out, weighed, squares)
    _launch_linear(
        x_MK, w_NK, scale_N, tile, form, out, add=add_MN, next_weight=next_weight_N, into=done,
        chained=chained,
    )  # fmt: skip
    return done


def _launch_linear(
    x: Tensor, w: Tensor, scale: Tensor | None, tile: Tile, form: Form, out: Tensor, *,
    squares: Tensor | None = None, eps: float = 0.0, gated: bool = False,
    add: Tensor | None = None, next_weight: Tensor | None = None, into: Carried | None = None,
    chained: bool,
) -> None:  # fmt: skip
    (rows, depth), outs = x.shape, out.shape[1]
    line = LINE // w.element_size() if w.is_cuda else 1
    if rows > MAX_ROWS or outs % tile.rows or depth % tile.depth or tile.depth % line:
        raise ValueError(f"no {tile} for {rows} rows of [{outs}, {depth}]")
    _linear[(outs // tile.rows,)](
        x, w, scale if scale is not None else x, squares if squares is not None else x,
        add if add is not None else x, next_weight if next_weight is not None else x, out,
        into.weighed if into else x, into.squares if into else x, rows, outs, depth,
        squares.shape[0] if squares is not None else 0, eps,
        BM=16, BN=tile.rows, BK=tile.depth, NORM=squares is not None, GATED=gated,
        ADD=add is not None, SCALED=scale is not None, UNIT=form.unit, CHAINED=chained,
        AHEAD=min(tile.ahead, depth // tile.depth), LINE_K=line,
        num_stages=tile.stages, num_warps=tile.warps, **_launch(chained),
    )  # fmt: skip


class Scratch:
    """What the programs of a row leave for the last of them, for `rows` rows at most."""

    def __init__(self, rows: int, kv_heads: int, size: int, splits: int, device: torch.device):
        self.splits = splits
        shape = (rows, kv_heads, splits, MAX_ROWS)
        self.parts = torch.empty((*shape, size), dtype=torch.float32, device=device)
        self.max = torch.empty(shape, dtype=torch.float32, device=device)
        self.sum = torch.empty(shape, dtype=torch.float32, device=device)
        self.arrived = torch.zeros((rows, kv_heads), dtype=torch.int32, device=device)


def attention(
    qkv: Tensor, positions_B: Tensor, cos_sin: Tensor, k_pages: Tensor, v_pages: Tensor,
    indptr: Tensor, indices: Tensor, scratch: Scratch, form: Form, *, softmax_scale: float,
    q_weight_D: Tensor | None = None, k_weight_D: Tensor | None = None, eps: float = 0.0,
    block: int = 64, warps: int = 4, chained: bool = True,
) -> Tensor:  # fmt: skip
    """One token a row: turns q and k, writes k and v to their page, attends: [B, H D] in the form
    handed on.

    qkv [B, (H + 2 K) D]; positions int [B]; cos_sin as in Ops.rope_store; the pages of row b are
    indices[indptr[b] : indptr[b + 1]], that of its new token among them. At most 16 query heads to
    a kv head. ValueError otherwise.
    """
    page, kv_heads, size = k_pages.shape[1:]
    rows = qkv.shape[0]
    heads = qkv.shape[1] // size - 2 * kv_heads
    if heads // kv_heads > MAX_ROWS or rows > scratch.arrived.shape[0]:
        raise ValueError(f"{heads} heads over {kv_heads}, {rows} rows")
    out = torch.empty((rows, heads * size), dtype=form.dtype, device=qkv.device)
    _attend[(rows, kv_heads, scratch.splits)](
        qkv, positions_B, cos_sin, q_weight_D if q_weight_D is not None else qkv,
        k_weight_D if k_weight_D is not None else qkv, eps, k_pages, v_pages, indptr, indices, out,
        scratch.parts, scratch.max, scratch.sum, scratch.arrived, qkv.stride(0), softmax_scale,
        H=heads, K=kv_heads, D=size, P=page, GROUP=MAX_ROWS, BT=block, SPLITS=scratch.splits,
        NORM=q_weight_D is not None, UNIT=form.unit, CHAINED=chained, num_warps=warps,
        **_launch(chained),
    )  # fmt: skip
    return out


def _launch(chained: bool) -> dict[str, bool]:
    return {"launch_pdl": True} if chained else {}
