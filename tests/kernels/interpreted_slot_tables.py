"""Page writes, decode inputs and flat page lists in Triton's interpreter; run by
test_kernels_interpreted.py."""

from __future__ import annotations

import numpy as np
import torch

from appliance.kernels import slot_tables
from appliance.kernels.torch_ops import TorchOps

PAGE, WIDTH = 4, 300


def test_write_pages():
    tables = [torch.zeros(9, 20, dtype=torch.int32) for _ in range(2)]
    places = torch.randperm(9 * 20)[:100]
    slots, columns = (places // 20).int(), (places % 20).int()
    pages = torch.randint(1, 99, (100,), dtype=torch.int32)
    slot_tables.write_pages(tables[0], slots, columns, pages)
    TorchOps().write_pages(tables[1], slots, columns, pages)
    assert torch.equal(*tables)


def test_row_inputs():
    rows = 5
    table = torch.randint(1, 9999, (7, WIDTH), dtype=torch.int32)
    last = torch.randint(0, 1000, (7,), dtype=torch.int32)
    slots = torch.randperm(7)[:rows].int()
    starts = torch.tensor([0, 3, 4, 700, WIDTH * PAGE - 1], dtype=torch.int32)
    counts = (starts // PAGE + 1).numpy()
    indptr = torch.from_numpy(np.concatenate(([0], np.cumsum(counts))).astype(np.int32))
    longs = [torch.full((rows,), -1) for _ in range(3)]
    last_len = torch.full((rows,), -1, dtype=torch.int32)
    indices = torch.full((int(counts.sum()),), -1, dtype=torch.int32)
    slot_tables.row_inputs(slots, starts, indptr, table, last, *longs, last_len, indices, PAGE)
    at, own = starts.long(), table[slots.long()]
    assert torch.equal(longs[0], last[slots.long()].long())
    assert torch.equal(longs[1], at)
    page = own.gather(1, (at // PAGE)[:, None])[:, 0].long()
    assert torch.equal(longs[2], page * PAGE + at % PAGE)
    assert torch.equal(last_len.long(), at % PAGE + 1)
    assert torch.equal(indices, torch.cat([own[r, : counts[r]] for r in range(rows)]))


def test_page_lists_from_any_column():
    table = torch.randint(1, 9999, (7, WIDTH), dtype=torch.int32)
    slots = torch.tensor([6, 2, 4], dtype=torch.int32)
    counts, firsts = [200, 1, 33], [0, 17, 250]
    indptr = torch.tensor([0, 200, 201, 234], dtype=torch.int32)
    for skip in (None, torch.tensor(firsts, dtype=torch.int32)):
        indices = torch.full((234,), -1, dtype=torch.int32)
        slot_tables.flatten_pages(table, slots, indptr, indices, skip)
        begins = [0, 0, 0] if skip is None else firsts
        own = zip(slots.tolist(), begins, counts, strict=True)
        assert torch.equal(indices, torch.cat([table[s, b : b + n] for s, b, n in own]))
