"""Sampling parameters of the rows that hold slots, and what the device counts for penalties."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from appliance.runtime.wire.request import Sampling
from appliance.runtime.wire.step import PENALIZED_MOST, NewRow

Floats = npt.NDArray[np.float32]

COUNTED_MOST = 16_000
"""Times that a token is counted in one output."""


@dataclass(frozen=True, slots=True)
class Edits:
    """Additions to logits before anything else: row, token int32 [k], value float32 [k]."""

    rows: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    values: Floats


class PenaltyTable:
    """How often each token was output, and which were in the prompt, for slots that ask.

    table int16 [rows, vocab]: twice the times that a token was output, and one more where the
    prompt has it. It is made whole at once: what grew later would not be in the memory plan.
    """

    def __init__(self, slots: int, vocab: int, device: torch.device) -> None:
        shape = min(slots, PENALIZED_MOST), vocab
        if device.type == "cpu":  # whose memory the system hands out as it is written
            self.table = torch.from_numpy(np.zeros(shape, dtype=np.int16))
        else:
            self.table = torch.zeros(shape, dtype=torch.int16, device=device)
        self._row_of: dict[int, int] = {}
        self._free = list(range(shape[0]))

    def take(self, new: NewRow) -> None:
        row = self._row_of[new.slot] = self._free.pop()
        device = self.table.device
        history = torch.from_numpy(new.history.astype(np.int64)).to(device, non_blocking=True)
        prompt, output = history[: new.prompt_length], history[new.prompt_length :]
        counts = torch.zeros(self.table.shape[1], dtype=torch.int32, device=device)
        counts.scatter_add_(0, output, torch.ones_like(output, dtype=torch.int32))
        counts = counts.clamp(max=COUNTED_MOST) * 2
        counts[prompt] |= 1
        self.table[row] = counts.to(torch.int16)

    def drop(self, slot: int) -> None:
        row = self._row_of.pop(slot, None)
        if row is not None:
            self._free.append(row)

    def rows(self, slots: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        return np.array([self._row_of[int(s)] for s in slots], dtype=np.int32)

    def count(self, rows: Tensor, tokens: Tensor) -> None:
        """One more of each row's token. No row twice."""
        before = self.table[rows, tokens]
        more = torch.where(before < 2 * COUNTED_MOST, before + 2, before)
        self.table.index_put_((rows, tokens), more)


class SamplingState:
    """Host tables by slot; a step sends the rows it needs."""

    def __init__(self, slots: int, vocab: int, device: torch.device) -> None:
        def table(value: float) -> Floats:
            return np.full(slots + 1, value, dtype=np.float32)

        self.vocab = vocab
        self.temperature, self.top_p, self.min_p = table(0), table(1), table(0)
        self.frequency, self.presence, self.repetition = table(0), table(0), table(1)
        self.top_k = np.zeros(slots + 1, dtype=np.int32)
        self.seed = np.zeros(slots + 1, dtype=np.int64)
        self.logprobs = np.full(slots + 1, -1, dtype=np.int32)
        self.prompt_logprobs = np.full(slots + 1, -1, dtype=np.int32)
        self.pools: dict[int, Sampling] = {}
        """Of the slots whose rows want a vector."""
        self.min_tokens = np.zeros(slots + 1, dtype=np.int32)
        self.edited = np.zeros(slots + 1, dtype=bool)
        self.penalized = np.zeros(slots + 1, dtype=bool)
        self._bias: dict[int, tuple[npt.NDArray[np.int32], Floats]] = {}
        self._stops: dict[int, npt.NDArray[np.int32]] = {}
        self.history: dict[int, npt.NDArray[np.int32]] = {}
        self.penalties = PenaltyTable(slots, vocab, device)

    def take(self, new: NewRow) -> None:
        """A row takes its slot; every table is written, so nothing is left of the one before."""
        s, slot = new.sampling, new.slot
        self.temperature[slot], self.top_k[slot] = s.temperature, s.top_k
        self.top_p[slot], self.min_p[slot] = s.top_p, s.min_p
        self.frequency[slot], self.presence[slot] = s.frequency_penalty, s.presence_penalty
        self.repetition[slot] = s.repetition_penalty
        self.seed[slot] = s.seed
        self.logprobs[slot], self.prompt_logprobs[slot] = s.logprobs, s.prompt_logprobs
        self.min_tokens[slot] = s.min_tokens
        self.pools.pop(slot, None)
        if s.pool:
            self.pools[slot] = s
        self._bias.pop(slot, None)
        self._stops.pop(slot, None)
        if s.logit_bias:
            ids = np.array([i for i, _ in s.logit_bias], dtype=np.int32)
            self._bias[slot] = ids, np.array([v for _, v in s.logit_bias], dtype=np.float32)
        if s.min_tokens and s.stop_ids:
            self._stops[slot] = np.array(s.stop_ids, dtype=np.int32)
        self.edited[slot] = slot in self._bias or slot in self._stops
        self.history.pop(slot, None)
        if s.prompt_logprobs >= 0:
            self.history[slot] = new.history
        self.penalties.drop(slot)
        self.penalized[slot] = (
            s.frequency_penalty != 0 or s.presence_penalty != 0 or s.repetition_penalty != 1
        )
        if self.penalized[slot]:
            self.penalties.take(new)

    def drop(self, slot: int) -> None:
        self.penalties.drop(slot)
        self.pools.pop(slot, None)
        self._bias.pop(slot, None)
        self._stops.pop(slot, None)
        self.history.pop(slot, None)

    def edits(self, slots: npt.NDArray[np.int32], outputs: npt.NDArray[np.int32]) -> Edits | None:
        """Bias of these rows, and no stop id before min_tokens outputs."""
        rows, tokens, values = [], [], []
        for row in np.flatnonzero(self.edited[slots]):
            slot = int(slots[row])
            if slot in self._bias:
                ids, bias = self._bias[slot]
                rows.append(np.full(len(ids), row, dtype=np.int32))
                tokens.append(ids)
                values.append(bias)
            if slot in self._stops and outputs[row] < self.min_tokens[slot]:
                stops = self._stops[slot]
                rows.append(np.full(len(stops), row, dtype=np.int32))
                tokens.append(stops)
                values.append(np.full(len(stops), -np.inf, dtype=np.float32))
        if not rows:
            return None
        return Edits(np.concatenate(rows), np.concatenate(tokens), np.concatenate(values))
