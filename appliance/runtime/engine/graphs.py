"""CUDA graphs of the decode pass by row count: pad, plan, replay.

A captured pass reads its rows' slots and positions from one table, looks up everything else on the
device (last token, page, page list), and leaves hidden states in a buffer all graphs share.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from appliance.kernels.ops import CaptureOps
from appliance.runtime.engine.captures import Captures
from appliance.runtime.engine.inputs import Staging, decode_tables
from appliance.runtime.engine.slots import Slots
from appliance.runtime.model.attention.backend import Backend, Int32s, RowTables
from appliance.runtime.model.batch import Batch, KVPages
from appliance.runtime.model.decoder import Decoder
from appliance.runtime.wire.step import Step

_EMPTY = np.zeros(0, dtype=np.int32)


class SmallPass(Protocol):
    """Another way to compute what `Decoder.forward` does for few decode rows."""

    def run(self, batch: Batch, tables: RowTables) -> Tensor:
        """Hidden states [T, hidden]; K and V of the batch's tokens are written to their pages."""


class DecodeGraphs:
    """sizes: row counts to capture, ascending."""

    def __init__(
        self,
        model: Decoder,
        backend: Backend,
        ops: CaptureOps,
        slots: Slots,
        pages: list[KVPages],
        page_size: int,
        hidden: int,
        dtype: torch.dtype,
        sizes: tuple[int, ...],
        staging: Staging,
        few: SmallPass | None = None,
        few_rows: int = 0,
    ) -> None:
        """few: runs the passes of up to `few_rows` rows in the decoder's place."""
        device = slots.page_table.device
        self._model, self._backend, self._ops = model, backend, ops
        self._slots, self._pages, self._page_size = slots, pages, page_size
        self._staging = staging
        self._few, self._few_rows = few, few_rows if few is not None else 0
        most = max(sizes)
        self._listed = len(backend.graph_inputs(most).indices)
        self._ample = most * slots.page_table.shape[1] <= self._listed
        self._table = torch.zeros(2 * most, dtype=torch.int32, device=device)
        self._inputs: dict[int, tuple[Tensor, Tensor]] = {}
        self._ids = torch.zeros(most, dtype=torch.int64, device=device)
        self._positions = torch.zeros(most, dtype=torch.int64, device=device)
        self._kv_rows = torch.zeros(most, dtype=torch.int64, device=device)
        self._hidden = torch.zeros((most, hidden), dtype=dtype, device=device)
        self.captures = Captures(sizes, self._prepare, self._body)

    def size_for(self, step: Step, crowded: bool = False) -> int | None:
        """The smallest captured size that takes the decode rows of `step`; None when there is none
        yet, or more pages than can be listed: rows that share theirs may have more than there are.
        crowded: not the one kernel of few rows, which needs all multiprocessors at once."""
        rows = len(step.slots)
        size = self.captures.size_for(self._wanted(rows, crowded))
        if size is None or self._ample:
            return size
        pages = int((step.starts // self._page_size + 1).sum(dtype=np.int64)) + size - rows
        return size if pages <= self._listed else None

    def _wanted(self, rows: int, crowded: bool) -> int:
        return max(rows, self._few_rows + 1) if crowded else rows

    def _prepare(self, size: int) -> None:
        self._table.zero_()
        self._table[:size] = self._slots.spare
        indptr = np.arange(size + 1, dtype=np.int32)
        self._inputs[size] = self._table[: 2 * size], self._backend.graph_inputs(size).indptr
        self._staging.fill((indptr, self._inputs[size][1]))
        self._plan(size, indptr)

    def _body(self, size: int) -> None:
        tables = self._backend.graph_inputs(size)
        self._ops.row_inputs(
            self._table[:size],
            self._table[size : 2 * size],
            tables.indptr,
            self._slots.page_table,
            self._slots.last_token,
            self._ids,
            self._positions,
            self._kv_rows,
            tables.last_len,
            tables.indices,
            self._page_size,
        )
        batch = Batch(
            ids=self._ids[:size],
            positions=self._positions[:size],
            kv_rows=self._kv_rows[:size],
            slots=self._table[:size],
            starts=_EMPTY,
            lengths=_EMPTY,
            prefill_rows=0,
            prefill_tokens=0,
            page_table=self._slots.page_table,
            page_size=self._page_size,
            padded_rows=size,
        )
        # what embeds the tokens waits for all of the above; kernels behind that may not, and read
        # these tables as what was there before the step
        if self._few is not None and size <= self._few_rows:
            self._hidden[:size].copy_(self._few.run(batch, tables))
        else:
            self._hidden[:size].copy_(self._model(batch, self._pages))

    def _plan(self, size: int, indptr: Int32s) -> None:
        if size > self._few_rows:  # the one kernel reads the page lists and needs no plan
            self._backend.plan_graph(size, indptr)

    def replay(self, step: Step, size: int, crowded: bool = False) -> tuple[Tensor, Tensor]:
        """Hidden states [rows, hidden] of a step of decode rows, and their slots int32 [rows]; both
        overwritten by the next replay. crowded: a prefill runs beside it."""
        rows = len(step.slots)
        self._backend.leave_room(crowded)
        with self._staging.stopwatch:
            table, indptr = decode_tables(step, size, self._slots.spare, self._page_size)
            on_device, pages_before = self._inputs[size]
            self._staging.fill((table, on_device), (indptr, pages_before))
            self._plan(size, indptr)
        self.captures.replay(size, self._wanted(rows, crowded))
        return self._hidden[:rows], self._table[:rows]
