"""Tables by slot on the device: page writes, a decode row's inputs, flat page lists."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _write_pages(table, width, slots, columns, pages, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = i < count
    slot = tl.load(slots + i, mask=ok).to(tl.int64)
    column = tl.load(columns + i, mask=ok)
    tl.store(table + slot * width + column, tl.load(pages + i, mask=ok), mask=ok)


@triton.jit
def _row_inputs(
    slots, starts, indptr, page_table, width, last_token, ids, positions, kv_rows, last_len,
    indices, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Decode row b: its input id, position, place in the pool and page list, from its slot."""
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(starts + row)
    tl.store(ids + row, tl.load(last_token + slot))
    tl.store(positions + row, position)
    table = page_table + slot * width
    page = tl.load(table + position // PAGE)
    tl.store(kv_rows + row, page.to(tl.int64) * PAGE + position % PAGE)
    tl.store(last_len + row, position % PAGE + 1)
    begin = tl.load(indptr + row)
    count = position // PAGE + 1
    for first in range(0, count, BLOCK):
        column = first + tl.arange(0, BLOCK)
        ok = column < count
        tl.store(indices + begin + column, tl.load(table + column, mask=ok), mask=ok)


@triton.jit
def _flatten_pages(
    page_table, width, slots, indptr, firsts, indices, SKIP: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    table = page_table + tl.load(slots + row).to(tl.int64) * width
    if SKIP:
        table += tl.load(firsts + row)
    begin = tl.load(indptr + row)
    count = tl.load(indptr + row + 1) - begin
    for first in range(0, count, BLOCK):
        column = first + tl.arange(0, BLOCK)
        ok = column < count
        tl.store(indices + begin + column, tl.load(table + column, mask=ok), mask=ok)


def write_pages(page_table: Tensor, slots: Tensor, columns: Tensor, pages: Tensor) -> None:
    count = slots.shape[0]
    _write_pages[(triton.cdiv(count, 256),)](
        page_table, page_table.shape[1], slots, columns, pages, count, BLOCK=256
    )


def row_inputs(
    slots: Tensor,
    starts: Tensor,
    indptr: Tensor,
    page_table: Tensor,
    last_token: Tensor,
    ids: Tensor,
    positions: Tensor,
    kv_rows: Tensor,
    last_len: Tensor,
    indices: Tensor,
    page_size: int,
) -> None:
    _row_inputs[(slots.shape[0],)](
        slots, starts, indptr, page_table, page_table.shape[1], last_token, ids, positions,
        kv_rows, last_len, indices, PAGE=page_size, BLOCK=128, num_warps=4,
    )  # fmt: skip


def flatten_pages(
    page_table: Tensor, slots: Tensor, indptr: Tensor, indices: Tensor, firsts: Tensor | None
) -> None:
    _flatten_pages[(slots.shape[0],)](
        page_table, page_table.shape[1], slots, indptr, slots if firsts is None else firsts,
        indices, SKIP=firsts is not None, BLOCK=128, num_warps=4,
    )  # fmt: skip
