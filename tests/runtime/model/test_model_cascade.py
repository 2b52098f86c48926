"""Attention in two parts is attention in one: over random groups, lengths and forms of pages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from appliance.runtime.model.attention.cascade import State, attend, merge
from appliance.runtime.model.attention.reference import ReferenceBackend
from appliance.runtime.model.batch import Batch, KVPages, KVScales, Shared

CPU = torch.device("cpu")
PAGE, COLUMNS, KV_HEADS, HEADS, SIZE = 4, 20, 2, 6, 16


def random_batch(rng: np.random.Generator, prefill: int) -> Batch:
    """Groups of rows that share pages, rows that share none, and prefill rows before them."""
    groups = int(rng.integers(1, 4))
    rows = rng.integers(2, 6, groups).astype(np.int32)
    pages = rng.integers(1, 10, groups).astype(np.int32)
    alone = int(rng.integers(0, 4))
    count = prefill + int(rows.sum()) + alone
    free = (rng.permutation(count * COLUMNS) + 1).astype(np.int32)
    table = free.reshape(count, COLUMNS)
    starts = rng.integers(0, PAGE * COLUMNS, count).astype(np.int32)
    lengths = np.ones(count, dtype=np.int32)
    lengths[:prefill] = rng.integers(1, 9, prefill)
    starts[:prefill] = np.minimum(starts[:prefill], PAGE * COLUMNS - 8)
    at = prefill
    for n, shared in zip(rows.tolist(), pages.tolist(), strict=True):
        table[at : at + n, :shared] = table[at, :shared]
        starts[at : at + n] = rng.integers(shared * PAGE, PAGE * COLUMNS, n)
        at += n
    empty = torch.zeros(0, dtype=torch.int64)
    return Batch(
        ids=empty, positions=empty, kv_rows=empty,
        slots=torch.from_numpy(rng.permutation(count).astype(np.int32)),
        starts=starts, lengths=lengths, prefill_rows=prefill,
        prefill_tokens=int(lengths[:prefill].sum()),
        page_table=torch.from_numpy(table), page_size=PAGE, shared=Shared(rows, pages),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_in_two_parts_as_in_one(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    batch = random_batch(rng, prefill=seed % 3)
    slots = torch.empty_like(batch.slots)
    slots[batch.slots.long()] = torch.arange(len(slots), dtype=torch.int32)
    table = batch.page_table[slots.long()]  # row r's pages at its slot
    batch = dataclasses.replace(batch, page_table=table)
    pool = torch.randn(len(slots) * COLUMNS + 1, PAGE, KV_HEADS, SIZE)
    pages, scales = KVPages(pool, torch.randn_like(pool)), KVScales()
    if seed % 2:
        narrow = pages.k.to(torch.float8_e4m3fn), pages.v.to(torch.float8_e4m3fn)
        pages, scales = KVPages(*narrow), KVScales(0.7, 1.9)
    q = torch.randn(int(batch.lengths.sum()), HEADS, SIZE) * 2
    parts, whole = ReferenceBackend(CPU), ReferenceBackend(CPU)
    parts.plan(batch)
    whole.plan(dataclasses.replace(batch, shared=None))
    for window in (0, 7):
        got, want = (b.run(q, pages, window, scales) for b in (parts, whole))
        assert torch.allclose(got, want, atol=1e-5), float((got - want).abs().max())
    assert not torch.equal(parts.run(q, pages, 0, scales), whole.run(q, pages, 0, scales))


def test_a_state_of_no_keys_adds_nothing():
    q, k = torch.randn(2, 1, 3, 8), torch.randn(2, 1, 5, 8)
    state = attend(q, k, torch.randn(2, 1, 5, 8), None)
    nothing = State(torch.zeros_like(state.out), torch.full_like(state.total, -torch.inf))
    for merged in (merge(state, nothing), merge(nothing, state)):
        assert torch.allclose(merged.out, state.out)
        assert torch.allclose(merged.total, state.total)
