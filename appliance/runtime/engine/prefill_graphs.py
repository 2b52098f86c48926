"""CUDA graphs of short prefills by token count: where launching takes longer than computing.

A prefill of a few hundred tokens is some four hundred kernels of microseconds each; replayed as
one graph it takes the time of its arithmetic. Longer ones hide their launches and stay eager.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from appliance.runtime.engine.captures import Captures
from appliance.runtime.engine.inputs import Staging
from appliance.runtime.engine.slots import Slots
from appliance.runtime.model.attention.backend import PREFILL_ROWS, Backend
from appliance.runtime.model.batch import Batch, KVPages
from appliance.runtime.model.decoder import Decoder
from appliance.runtime.wire.step import Step

_EMPTY = np.zeros(0, dtype=np.int32)


class PrefillGraphs:
    """sizes: token counts to capture, ascending."""

    def __init__(
        self,
        model: Decoder,
        backend: Backend,
        slots: Slots,
        pages: list[KVPages],
        page_size: int,
        hidden: int,
        dtype: torch.dtype,
        sizes: tuple[int, ...],
        staging: Staging,
    ) -> None:
        device = slots.page_table.device
        self._model, self._backend = model, backend
        self._slots, self._pages, self._page_size = slots, pages, page_size
        self._staging = staging
        most = self.largest = max(sizes)
        self._table = torch.zeros(3 * most + PREFILL_ROWS, dtype=torch.int32, device=device)
        self._hidden = torch.zeros((most, hidden), dtype=dtype, device=device)
        self.captures = Captures(sizes, self._prepare, self._body)

    def size_for(self, step: Step) -> int | None:
        """The captured size that takes `step`, decode rows of it too; None when none does."""
        if len(step.slots) > PREFILL_ROWS or step.prefill_rows == 0 or step.shared is not None:
            return None
        return self.captures.size_for(int(step.lengths.sum()))

    def _prepare(self, size: int) -> None:
        self._table.zero_()
        self._table[2 * size :] = self._slots.spare
        full = np.array([size], dtype=np.int32)
        slots = self._table[3 * size : 3 * size + 1]
        self._backend.plan_prefill_graph(size, slots, self._slots.page_table, full, full)

    def _body(self, size: int) -> None:
        """The table holds ids, positions and owners' slots of `size` tokens, then the rows' slots.

        An id below zero is that of a decode row, which its slot knows. Tokens past the step's last
        one belong to the spare slot: their K and V go to page 0.
        """
        ids, positions, owners = self._table[: 3 * size].long().view(3, size).unbind(0)
        ids = torch.where(ids < 0, self._slots.last_token[owners].long(), ids)
        page = self._slots.page_table[owners, positions // self._page_size]
        batch = Batch(
            ids=ids,
            positions=positions,
            kv_rows=page.long() * self._page_size + positions % self._page_size,
            slots=self._table[3 * size :],
            starts=_EMPTY,
            lengths=_EMPTY,
            prefill_rows=0,
            prefill_tokens=size,
            page_table=self._slots.page_table,
            page_size=self._page_size,
            padded_tokens=size,
        )
        self._hidden[:size].copy_(self._model(batch, self._pages))

    def replay(self, step: Step, size: int) -> tuple[Tensor, Tensor]:
        """Hidden states [tokens, hidden] of the step, and its slots int32 [rows]; both overwritten
        by the next replay."""
        tokens, n = int(step.lengths.sum()), len(step.slots)
        with self._staging.stopwatch:
            lengths = step.lengths
            begins = np.cumsum(lengths) - lengths
            table = np.zeros(3 * size + n, dtype=np.int32)
            table[: len(step.ids)] = step.ids
            table[len(step.ids) : tokens] = -1
            positions = np.repeat(step.starts - begins, lengths) + np.arange(tokens)
            table[size : size + tokens] = positions
            table[2 * size : 3 * size] = self._slots.spare
            table[2 * size : 2 * size + tokens] = np.repeat(step.slots, lengths)
            table[3 * size :] = step.slots
            self._staging.fill((table, self._table[: len(table)]))
            slots = self._table[3 * size : 3 * size + n]
            self._backend.plan_prefill_graph(
                size, slots, self._slots.page_table, step.starts + lengths, lengths
            )
        self.captures.replay(size, tokens)
        return self._hidden[:tokens], slots
