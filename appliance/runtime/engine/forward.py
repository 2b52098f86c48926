"""Step -> hidden states of the rows that sample: a captured graph when one fits, else eager."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from appliance.runtime.engine.graphs import DecodeGraphs
from appliance.runtime.engine.inputs import Staging, batch_of, last_tokens
from appliance.runtime.engine.prefill_graphs import PrefillGraphs
from appliance.runtime.engine.slots import Slots
from appliance.runtime.model.batch import KVPages
from appliance.runtime.model.decoder import Decoder
from appliance.runtime.wire.step import Step


class Passed(NamedTuple):
    """hidden [S, hidden] of the rows that sample; whole [T, hidden] of all tokens; slots int32
    [rows] of the step. The next pass may overwrite them."""

    hidden: Tensor
    whole: Tensor
    slots: Tensor


class Forward:
    """graphs, prefill_graphs: None on devices without them."""

    def __init__(
        self,
        model: Decoder,
        slots: Slots,
        pages: list[KVPages],
        page_size: int,
        graphs: DecodeGraphs | None = None,
        prefill_graphs: PrefillGraphs | None = None,
    ) -> None:
        self._model, self._slots, self._pages = model, slots, pages
        self._page_size = page_size
        self._graphs, self._prefill_graphs = graphs, prefill_graphs

    def has_prefill(self, step: Step) -> bool:
        """Whether a captured prefill takes the step."""
        return self._prefill_size(step) is not None

    def run(self, step: Step, staging: Staging, crowded: bool = False) -> Passed:
        """staging: of the current stream. crowded: a prefill runs beside this step."""
        if self._graphs is not None and step.prefill_rows == 0 and step.shared is None:
            size = self._graphs.size_for(step, crowded)
            if size is not None:
                hidden, slots = self._graphs.replay(step, size, crowded)
                return Passed(hidden, hidden, slots)
        hidden, slots = self._whole(step, staging)
        if step.prefill_rows == 0:
            return Passed(hidden, hidden, slots)
        at = last_tokens(step)
        if len(at) == len(hidden):
            return Passed(hidden, hidden, slots)
        where = torch.from_numpy(at).to(hidden.device, non_blocking=True)
        return Passed(hidden[where], hidden, slots)

    def drop_graphs(self) -> None:
        """Captured collectives hold on to the other ranks; without them one can leave."""
        if self._graphs is not None:
            self._graphs.captures.drop()
        if self._prefill_graphs is not None:
            self._prefill_graphs.captures.drop()
        self._graphs = self._prefill_graphs = None

    def _prefill_size(self, step: Step) -> int | None:
        """A step beside others is none: its matmuls must leave them room."""
        if self._prefill_graphs is None or step.beside:
            return None
        return self._prefill_graphs.size_for(step)

    def _whole(self, step: Step, staging: Staging) -> tuple[Tensor, Tensor]:
        """Hidden states of all tokens of a step that has prefill rows, or no graph of its size, and
        its slots."""
        size = self._prefill_size(step)
        if size is not None:
            assert self._prefill_graphs is not None
            return self._prefill_graphs.replay(step, size)
        slots = self._slots
        with staging.stopwatch:
            batch = batch_of(step, slots.page_table, slots.last_token, self._page_size, staging)
        hidden: Tensor = self._model(batch, self._pages)
        return hidden, batch.slots
