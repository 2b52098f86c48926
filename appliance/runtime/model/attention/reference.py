"""Attention in plain torch on any device: the meaning of the fast backends, and the CPU's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from appliance.kernels.ops import Turns
from appliance.runtime.model.attention.backend import Int32s, RowTables
from appliance.runtime.model.attention.cascade import CascadePlan
from appliance.runtime.model.batch import UNSCALED, Batch, KVPages, KVScales


@dataclass(frozen=True, slots=True)
class _Prefill:
    """One prefill row: its tokens in the batch, the pool rows of its keys, query positions."""

    begin: int
    end: int
    rows: Tensor
    fresh: bool
    positions: Tensor


@dataclass(frozen=True, slots=True)
class _Decode:
    """All decode rows: pool rows [B * L] (L the longest), and which of them count [B, 1, 1, L]."""

    rows: Tensor
    longest: int
    positions: Tensor
    full: bool
    mask: Tensor


class _Keys:
    """One layer's K or V by pool row: [n] -> [n, K, D] in the dtype of the queries."""

    __slots__ = ("_dtype", "_pool", "_scale")

    def __init__(self, pool: Tensor, dtype: torch.dtype, scale: float) -> None:
        self._pool, self._dtype, self._scale = pool.flatten(0, 1), dtype, scale

    def take(self, rows: Tensor) -> Tensor:
        # index_select copies whole rows; indexing by a table of rows takes four times as long
        taken = self._pool.index_select(0, rows)
        if self._pool.dtype.itemsize > 1:
            return taken
        return (taken.float() * self._scale).to(self._dtype)


class ReferenceBackend:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._prefills: list[_Prefill] = []
        self._decode: _Decode | None = None
        self._cascade: CascadePlan | None = None
        self._prefill_tokens = 0

    def plan(self, batch: Batch) -> None:
        table = batch.page_table
        size = batch.page_size
        ends = batch.starts + batch.lengths
        offsets = torch.arange(size, device=self._device)

        def pool_rows(slots: Tensor, longest: int) -> Tensor:
            pages = table[slots.long(), : -(-longest // size)].long()
            rows = (pages[:, :, None] * size + offsets).flatten(1)
            return rows[:, :longest]

        self._prefills = []
        at = 0
        for r in range(batch.prefill_rows):
            length, end = int(batch.lengths[r]), int(ends[r])
            self._prefills.append(
                _Prefill(
                    begin=at,
                    end=at + length,
                    rows=pool_rows(batch.slots[r : r + 1], end)[0],
                    fresh=length == end,
                    positions=torch.arange(end - length, end, device=self._device),
                )
            )
            at += length
        self._prefill_tokens = at
        self._decode = None
        self._cascade = CascadePlan(batch, self._device) if batch.shared is not None else None
        if len(ends) > batch.prefill_rows:
            lengths = ends[batch.prefill_rows :]
            longest = int(lengths.max())
            kv_len = torch.from_numpy(lengths.astype(np.int64)).to(self._device)
            keys = torch.arange(longest, device=self._device)
            self._decode = _Decode(
                rows=pool_rows(batch.slots[batch.prefill_rows :], longest).flatten(),
                longest=longest,
                positions=kv_len - 1,
                full=bool((lengths == longest).all()),
                mask=(keys[None, :] < kv_len[:, None])[:, None, None, :],
            )

    def run(
        self, q_THD: Tensor, pages: KVPages, window: int, scales: KVScales = UNSCALED
    ) -> Tensor:
        keys = _Keys(pages.k, q_THD.dtype, scales.k)
        values = _Keys(pages.v, q_THD.dtype, scales.v)
        parts = [self._run_prefill(q_THD, p, keys, values, window) for p in self._prefills]
        if self._decode is not None:
            q = q_THD[self._prefill_tokens :]
            if self._cascade is not None and not window:
                parts.append(self._cascade.run(q, keys.take, values.take))
            else:
                parts.append(self._run_decode(q, self._decode, keys, values, window))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _run_prefill(
        self, q_THD: Tensor, p: _Prefill, keys_of: _Keys, values_of: _Keys, window: int
    ) -> Tensor:
        q = q_THD[p.begin : p.end].transpose(0, 1)[None]
        k = keys_of.take(p.rows).transpose(0, 1)[None]
        v = values_of.take(p.rows).transpose(0, 1)[None]
        mask = None
        if not p.fresh or window:
            keys = torch.arange(p.rows.shape[0], device=self._device)
            mask = keys[None, :] <= p.positions[:, None]
            if window:
                mask &= keys[None, :] > p.positions[:, None] - window
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out[0].transpose(0, 1)

    def _run_decode(
        self, q_BHD: Tensor, d: _Decode, keys_of: _Keys, values_of: _Keys, window: int
    ) -> Tensor:
        rows, heads, size = q_BHD.shape
        k = keys_of.take(d.rows).unflatten(0, (rows, d.longest)).transpose(1, 2)
        v = values_of.take(d.rows).unflatten(0, (rows, d.longest)).transpose(1, 2)
        mask: Tensor | None = None if d.full else d.mask
        if window:
            keys = torch.arange(d.longest, device=self._device)
            seen = (keys[None, :] > d.positions[:, None] - window)[:, None, None, :]
            mask = d.mask & seen
        # the query heads of one kv head are the queries of one problem: no key is read twice
        q = q_BHD.view(rows, k.shape[1], heads // k.shape[1], size)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.reshape(rows, heads, size)

    @property
    def apart(self) -> bool:
        return False

    @property
    def turns_rows(self) -> int:
        return 0

    def run_unturned(
        self, qkv: Tensor, turns: Turns, pages: KVPages, window: int, scales: KVScales = UNSCALED
    ) -> Tensor | None:
        return None

    def leave_room(self, room: bool) -> None:
        """Nothing runs beside."""

    def graph_inputs(self, rows: int) -> RowTables:
        raise NotImplementedError("the reference backend is not captured")

    def plan_prefill_graph(
        self, tokens: int, slots: Tensor, page_table: Tensor, ends: Int32s, lengths: Int32s
    ) -> None:
        raise NotImplementedError("the reference backend is not captured")

    def plan_graph(self, rows: int, indptr: Int32s) -> None:
        raise NotImplementedError("the reference backend is not captured")
