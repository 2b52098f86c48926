"""Attention over pages on NVIDIA: prefill rows through one kernel, decode rows through another."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from appliance.kernels import paged_decode, turned_decode
from appliance.kernels.ops import CaptureOps, Turns
from appliance.kernels.paged_attention import (
    LayerPages,
    PagedAttention,
    PrefillTables,
    Shape,
    Workspace,
)
from appliance.kernels.paged_decode import PagedDecode
from appliance.kernels.turned_decode import TurnedDecode
from appliance.runtime.model.attention.backend import PREFILL_ROWS, Int32s, RowTables
from appliance.runtime.model.batch import UNSCALED, Batch, KVPages, KVScales, Shared

log = logging.getLogger(__name__)


class Own(NamedTuple):
    """Kernels of ours for decode rows: any number, and few of a captured pass, which they turn and
    store as well."""

    even: PagedDecode
    turned: TurnedDecode | None


def own_decode(shape: Shape, head_norm: bool, rows: int, device: torch.device) -> Own | None:
    """For up to so many rows; None, and a word in the log, where there is none. The plan has looked
    at GPU and model: what is left is what this machine's libraries tell."""
    own = paged_decode.Shape(
        shape.heads, shape.kv_heads, shape.head_dim, shape.page_size, shape.dtype,
        shape.kv_dtype is not shape.dtype,
    )  # fmt: skip
    capability = torch.cuda.get_device_capability(device)
    reason = paged_decode.why_not(own, capability)
    try:
        if not reason:
            return Own(PagedDecode(own, rows, device), _turned(own, head_norm, device))
    except RuntimeError as e:
        reason = str(e)
    log.warning("decode rows through FlashInfer: %s", reason)
    return None


def _turned(
    shape: paged_decode.Shape, head_norm: bool, device: torch.device
) -> TurnedDecode | None:
    reason = turned_decode.why_not(shape, torch.cuda.get_device_capability(device))
    try:
        if not reason:
            return TurnedDecode(shape, head_norm, device)
    except RuntimeError as e:
        reason = str(e)
    log.info("few decode rows are turned by a kernel of their own: %s", reason)
    return None


class PagedBackend:
    """windows: the distinct windows of the model's layers (0 for none); each has its own plan."""

    def __init__(
        self,
        shape: Shape,
        windows: tuple[int, ...],
        ops: CaptureOps,
        device: torch.device,
        rows: int,
        columns: int,
        own: Own | None = None,
    ) -> None:
        """rows: most rows of a captured pass. columns: most pages of one row. own: computes decode
        rows of layers without a window in FlashInfer's place."""
        workspace = Workspace(device, shape)
        hopper = torch.cuda.get_device_capability(device) == (9, 0)
        # FlashInfer's FA3 takes 8-bit keys only with queries of 8 bits
        prefill = "fa3" if hopper and shape.kv_dtype == shape.dtype else "fa2"
        self._parts = {w: PagedAttention(shape, w, workspace, prefill) for w in windows}
        self._even = own and own.even
        self._turned = own and own.turned
        self._eager: RowTables | None = None
        self._ops = ops
        self._device = device
        self._page_size = shape.page_size
        self._prefill_tokens = 0
        self._decode_rows = 0
        self._shared: Shared | None = None
        self._padded_rows = 0
        self._padded_tokens = 0
        self._indptr = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        self._last_len = torch.ones(rows, dtype=torch.int32, device=device)
        self._indices = torch.zeros(min(rows * columns, 1 << 24), dtype=torch.int32, device=device)
        self._prefill_tables = PrefillTables(
            queries=torch.zeros(PREFILL_ROWS + 1, dtype=torch.int32, device=device),
            pages=torch.zeros(PREFILL_ROWS + 1, dtype=torch.int32, device=device),
            last_len=torch.zeros(PREFILL_ROWS, dtype=torch.int32, device=device),
            indices=torch.zeros(PREFILL_ROWS * columns, dtype=torch.int32, device=device),
        )

    @property
    def apart(self) -> bool:
        return self._even is not None and not any(self._parts)

    def plan(self, batch: Batch) -> None:
        self._padded_rows, self._padded_tokens = batch.padded_rows, batch.padded_tokens
        if batch.padded_rows or batch.padded_tokens:
            return  # plan_graph or plan_prefill_graph has done it
        ends = batch.starts + batch.lengths
        pages = -(-ends // self._page_size)
        last = (ends - (pages - 1) * self._page_size).astype(np.int32)
        n = batch.prefill_rows
        self._prefill_tokens = batch.prefill_tokens
        self._decode_rows = len(ends) - n
        if n:
            queries = np.concatenate(([0], np.cumsum(batch.lengths[:n]))).astype(np.int32)
            indptr, _, indices = self._page_lists(batch, batch.slots[:n], pages[:n])
            for part in self._parts.values():
                part.plan_prefill(queries, indptr, last[:n], indices)
        self._shared = batch.shared
        if self._decode_rows and (batch.shared is None or any(self._parts)):
            indptr, on_device, indices = self._page_lists(batch, batch.slots[n:], pages[n:])
            if self._even is not None:
                last_len = torch.from_numpy(last[n:]).to(self._device, non_blocking=True)
                self._eager = RowTables(on_device, last_len, indices)
            for window, part in self._parts.items():
                if window or (batch.shared is None and self._even is None):
                    part.plan_decode(indptr, last[n:], indices)
        if batch.shared is not None and 0 in self._parts:
            self._plan_shared(batch, batch.shared, pages[n:], last[n:])

    def _plan_shared(self, batch: Batch, shared: Shared, pages: Int32s, last_len: Int32s) -> None:
        """pages, last_len: of each decode row, what it shares included."""
        n = batch.prefill_rows
        heads = np.concatenate(([0], np.cumsum(shared.rows)))[:-1]
        groups = torch.from_numpy(heads + n).to(self._device, non_blocking=True)
        common_indptr, _, common = self._page_lists(batch, batch.slots[groups], shared.pages)
        firsts = np.zeros(len(pages), dtype=np.int32)
        firsts[: int(shared.rows.sum())] = np.repeat(shared.pages, shared.rows)
        own_indptr, _, own = self._page_lists(batch, batch.slots[n:], pages - firsts, firsts)
        queries = np.concatenate(([0], np.cumsum(shared.rows))).astype(np.int32)
        self._parts[0].plan_shared(queries, common_indptr, common, own_indptr, last_len, own)

    def _page_lists(
        self, batch: Batch, slots: Tensor, pages: Int32s, firsts: Int32s | None = None
    ) -> tuple[Int32s, Tensor, Tensor]:
        """Pages before each row, on the host and on the device, and the pages."""
        indptr = np.concatenate(([0], np.cumsum(pages))).astype(np.int32)
        indices = torch.empty(int(indptr[-1]), dtype=torch.int32, device=self._device)
        on_device = torch.from_numpy(indptr).to(self._device, non_blocking=True)
        skip = None
        if firsts is not None:
            skip = torch.from_numpy(firsts).to(self._device, non_blocking=True)
        self._ops.flatten_pages(batch.page_table, slots, on_device, indices, skip)
        return indptr, on_device, indices

    def run(
        self, q_THD: Tensor, pages: KVPages, window: int, scales: KVScales = UNSCALED
    ) -> Tensor:
        part = self._parts[window]
        out = torch.empty_like(q_THD)
        layer = LayerPages(pages.k, pages.v, scales.k, scales.v)
        if self._padded_rows:
            if self._even is not None and not window:
                self._run_even(self.graph_inputs(self._padded_rows), q_THD, layer, out)
            else:
                part.run_graph(self._padded_rows, q_THD, layer, out)
            return out
        if self._padded_tokens:
            part.run_prefill_graph(self._padded_tokens, q_THD, layer, out)
            return out
        n = self._prefill_tokens
        if n:
            part.run_prefill(q_THD[:n], layer, out[:n])
        if self._decode_rows:
            if self._shared is not None and not window:
                part.run_shared(q_THD[n:], int(self._shared.rows.sum()), layer, out[n:])
            elif self._eager is not None and not window:
                self._run_even(self._eager, q_THD[n:], layer, out[n:])
            else:
                part.run_decode(q_THD[n:], layer, out[n:])
        return out

    @property
    def turns_rows(self) -> int:
        return turned_decode.MAX_ROWS if self._turned is not None and not any(self._parts) else 0

    def run_unturned(
        self, qkv: Tensor, turns: Turns, pages: KVPages, window: int, scales: KVScales = UNSCALED
    ) -> Tensor | None:
        if self._turned is None or window or not 0 < self._padded_rows <= turned_decode.MAX_ROWS:
            return None
        tables = self.graph_inputs(self._padded_rows)
        return self._turned.run(
            qkv, turns, pages.k, pages.v, tables.indptr, tables.last_len, tables.indices,
            scales.k, scales.v,
        )  # fmt: skip

    def _run_even(self, tables: RowTables, q_BHD: Tensor, layer: LayerPages, out: Tensor) -> None:
        assert self._even is not None
        self._even.run(
            q_BHD, layer.k, layer.v, tables.indptr, tables.last_len, tables.indices, out,
            layer.k_scale, layer.v_scale,
        )  # fmt: skip

    def graph_inputs(self, rows: int) -> RowTables:
        return RowTables(self._indptr[: rows + 1], self._last_len[:rows], self._indices)

    def leave_room(self, room: bool) -> None:
        for kernel in (self._even, self._turned):
            if kernel is not None:
                kernel.leave_room(room)

    def plan_prefill_graph(
        self, tokens: int, slots: Tensor, page_table: Tensor, ends: Int32s, lengths: Int32s
    ) -> None:
        tables, n = self._prefill_tables, len(ends)
        queries = np.full(PREFILL_ROWS + 1, int(lengths.sum()), dtype=np.int32)
        queries[: n + 1] = np.concatenate(([0], np.cumsum(lengths)))
        counts = -(-ends // self._page_size)
        pages = np.full(PREFILL_ROWS + 1, int(counts.sum()), dtype=np.int32)
        pages[: n + 1] = np.concatenate(([0], np.cumsum(counts)))
        last_len = np.zeros(PREFILL_ROWS, dtype=np.int32)
        last_len[:n] = ends - (counts - 1) * self._page_size
        on_device = torch.from_numpy(pages).to(self._device, non_blocking=True)
        self._ops.flatten_pages(page_table, slots, on_device, tables.indices)
        for part in self._parts.values():
            part.plan_prefill_graph(tokens, queries, pages, last_len, tables)

    def plan_graph(self, rows: int, indptr: Int32s) -> None:
        tables = self.graph_inputs(rows)
        for window, part in self._parts.items():
            if window or self._even is None:
                part.plan_graph(rows, indptr, tables.indptr, tables.last_len, tables.indices)
