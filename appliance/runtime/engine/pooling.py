"""Hidden states and logits -> the vectors that rows ask for instead of tokens (Sampling.pool)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from appliance.runtime.engine.sample.state import SamplingState
from appliance.runtime.wire.request import Sampling
from appliance.runtime.wire.step import Step

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pooled:
    """Vectors of several rows, end to end. values: float32 [sum of sizes]."""

    rows: list[int]
    sizes: list[int]
    values: Tensor

    def cut(self, arrived: Floats) -> tuple[tuple[int, Floats], ...]:
        """(row, vector) of each. arrived: `values` on the host."""
        ends = np.cumsum(self.sizes)
        return tuple(zip(self.rows, np.split(arrived, ends[:-1]), strict=True))


class Pooling:
    """What is gathered of a prompt over its chunks is kept by slot until the prompt ends."""

    def __init__(self, state: SamplingState) -> None:
        self._state = state
        self._sums: dict[int, Tensor] = {}
        """float32 [hidden]: the sum of the states so far, or the first of them."""

    def add(self, step: Step, hidden_TE: Tensor) -> None:
        """Takes of the prefill rows what is not there any more when their prompt ends."""
        begins = np.cumsum(step.lengths) - step.lengths
        for row in range(step.prefill_rows):
            slot = int(step.slots[row])
            asked = self._state.pools.get(slot)
            if asked is None or asked.pool not in ("mean", "first"):
                continue
            at, count = int(begins[row]), int(step.lengths[row])
            if step.starts[row] == 0:
                first = hidden_TE[at : at + (count if asked.pool == "mean" else 1)]
                self._sums[slot] = first.float().sum(0)
            elif asked.pool == "mean":
                self._sums[slot] = self._sums[slot] + hidden_TE[at : at + count].float().sum(0)

    def take(
        self, step: Step, sampled: npt.NDArray[np.int64], hidden_SE: Tensor, logits_SV: Tensor
    ) -> Pooled | None:
        """Of the sampling rows. sampled: their numbers in the step."""
        rows: list[int] = []
        vectors: list[Tensor] = []
        for i, row in enumerate(sampled.tolist()):
            slot = int(step.slots[row])
            asked = self._state.pools.get(slot)
            if asked is not None:
                length = int(step.starts[row] + step.lengths[row])
                vectors.append(self._vector(asked, slot, length, hidden_SE[i], logits_SV[i]))
                rows.append(row)
        if not rows:
            return None
        return Pooled(rows, [len(v) for v in vectors], torch.cat(vectors))

    def _vector(
        self, asked: Sampling, slot: int, length: int, hidden_E: Tensor, logits_V: Tensor
    ) -> Tensor:
        match asked.pool:
            case "mean":
                return self._sums.pop(slot) / length
            case "first":
                return self._sums.pop(slot)
            case "classes":
                return logits_V.float()
            case "labels":
                every = torch.log_softmax(logits_V.float() / (asked.temperature or 1.0), -1)
                wanted = torch.tensor(asked.labels, dtype=torch.int64)
                return every[wanted.to(every.device, non_blocking=True)]
            case _:
                return hidden_E.float()
