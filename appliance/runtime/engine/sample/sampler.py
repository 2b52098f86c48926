"""Logits -> tokens. The order of changes is one list: edits, penalties, mask, temperature, filters.

Everything that a step needs of a row is sent with the step; greedy rows without changes cost one
argmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from appliance.kernels.ops import Ops
from appliance.runtime.engine.inputs import Staging
from appliance.runtime.engine.sample import logprobs as lp
from appliance.runtime.engine.sample.state import SamplingState
from appliance.runtime.wire.step import Masks

PART = 512
"""Rows whose logits are in float32 at a time: more would only take memory from the pages."""
INVALID = -2
"""Token of a row whose logits are not finite."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """tokens int64 [S]: INVALID where the logits were not finite."""

    tokens: Tensor
    logprobs: lp.Chosen | None


class Sampler:
    def __init__(self, state: SamplingState, ops: Ops, staging: Staging) -> None:
        self._state, self._ops, self._staging = state, ops, staging

    def sample(
        self,
        logits_SV: Tensor,
        slots: npt.NDArray[np.int32],
        outputs: npt.NDArray[np.int32],
        masks: Masks | None,
    ) -> Sampled:
        """One token a row. slots, outputs int32 [S] on the host; masks name rows of these S."""
        wanted = int(self._state.logprobs[slots].max(initial=-1))
        count = len(slots)
        if count <= PART or not (masks is not None or wanted >= 0 or self._changes(slots)):
            return self._part(logits_SV, slots, outputs, masks, wanted)
        parts = []
        for begin in range(0, count, PART):
            own = slice(begin, begin + PART)
            of_own = _between(masks, begin, begin + PART)
            parts.append(self._part(logits_SV[own], slots[own], outputs[own], of_own, wanted))
        chosen = [p.logprobs for p in parts if p.logprobs is not None]
        return Sampled(
            torch.cat([p.tokens for p in parts]), lp.joined(chosen) if wanted >= 0 else None
        )

    def _changes(self, slots: npt.NDArray[np.int32]) -> bool:
        """Whether any row needs more than the largest of its logits."""
        s = self._state
        changed = (s.temperature[slots] > 0) | s.edited[slots] | s.penalized[slots]
        return bool(changed.any())

    def _part(
        self,
        logits_SV: Tensor,
        slots: npt.NDArray[np.int32],
        outputs: npt.NDArray[np.int32],
        masks: Masks | None,
        wanted: int,
    ) -> Sampled:
        """wanted: log probabilities of so many likeliest tokens; -1: none."""
        s = self._state
        random = s.temperature[slots] > 0
        edits = s.edits(slots, outputs) if s.edited[slots].any() else None
        penalized = np.flatnonzero(s.penalized[slots]).astype(np.int32)
        x = logits_SV
        if edits is not None or len(penalized) or masks is not None:
            x = x.float().contiguous()
            if wanted >= 0 and x is logits_SV:
                x = x.clone()  # what is told of is the model's, before any change
        if edits is not None:
            at, ids, values = self._staging.send([edits.rows, edits.tokens, edits.values])
            x = x.index_put((at.long(), ids.long()), values, accumulate=True)
        rows = self._penalize(x, slots, penalized) if len(penalized) else None
        if masks is not None:
            x = self._mask(x, masks)
        tokens = largest = self._ops.first_largest(x, INVALID)
        if random.any():
            drawn = self._draw(x, largest, slots, outputs, random)
            tokens = torch.where(largest == INVALID, INVALID, drawn)
        if rows is not None:
            (at,) = self._staging.send([penalized])
            self._state.penalties.count(rows, tokens[at.long()].clamp(min=0))
        if wanted < 0:
            return Sampled(tokens, None)
        (asked,) = self._staging.send([np.flatnonzero(s.logprobs[slots] >= 0).astype(np.int32)])
        return Sampled(tokens, lp.of_rows(logits_SV, tokens.clamp(min=0), asked.long(), wanted))

    def _penalize(
        self, x_SV: Tensor, slots: npt.NDArray[np.int32], at: npt.NDArray[np.int32]
    ) -> Tensor:
        """Repetition (CTRL: divide or multiply what was seen), then frequency and presence."""
        s = self._state
        own = slots[at]
        where, rows, repetition, frequency, presence = self._staging.send(
            [at, s.penalties.rows(own), s.repetition[own], s.frequency[own], s.presence[own]]
        )
        rows = rows.long()
        self._ops.penalize(
            x_SV, where.long(), s.penalties.table, rows, repetition, frequency, presence
        )
        return rows

    def _mask(self, x_SV: Tensor, masks: Masks) -> Tensor:
        words = masks.bits.shape[1]
        where, flat = self._staging.send([masks.rows, masks.bits.view(np.int32).reshape(-1)])
        self._ops.allow(x_SV, where.long(), flat.view(-1, words))
        return x_SV

    def _draw(
        self,
        x_SV: Tensor,
        greedy_S: Tensor,
        slots: npt.NDArray[np.int32],
        outputs: npt.NDArray[np.int32],
        random: npt.NDArray[np.bool_],
    ) -> Tensor:
        """Random rows get a draw; the others keep their greedy token."""
        s = self._state
        seeds = s.seed[slots]
        temperature, low, high, counters, flags = self._staging.send(
            [
                np.where(random, s.temperature[slots], 1).astype(np.float32),
                (seeds & 0xFFFFFFFF).astype(np.uint32).view(np.int32),
                (seeds >> 32).astype(np.int32),
                outputs,
                random.astype(np.int32),
            ]
        )
        filtered = random & ((s.top_k[slots] > 0) | (s.top_p[slots] < 1) | (s.min_p[slots] > 0))
        if filtered.any():
            x_SV = x_SV.float() / temperature[:, None]  # what is likely depends on it
            x_SV = self._filter(x_SV, slots, np.flatnonzero(filtered))
            temperature = torch.ones_like(temperature)
        seed = (high.long() << 32) | (low.long() & 0xFFFFFFFF)
        drawn = self._ops.gumbel_argmax(x_SV, temperature, seed, counters)
        return torch.where(flags.bool(), drawn, greedy_S)

    def _filter(
        self, x_SV: Tensor, slots: npt.NDArray[np.int32], at: npt.NDArray[np.intp]
    ) -> Tensor:
        s = self._state
        own = slots[at]
        vocab = x_SV.shape[1]
        where, top_k, top_p, min_p = self._staging.send(
            [
                at.astype(np.int32),
                np.where(s.top_k[own] > 0, np.minimum(s.top_k[own], vocab), vocab).astype(np.int32),
                s.top_p[own],
                s.min_p[own],
            ]
        )
        return self._ops.keep_likely(x_SV, where, top_k, top_p, min_p)


def _between(masks: Masks | None, begin: int, end: int) -> Masks | None:
    """Those of rows begin .. end - 1, which are 0 .. there."""
    if masks is None:
        return None
    own = (masks.rows >= begin) & (masks.rows < end)
    return Masks(masks.rows[own] - begin, masks.bits[own]) if own.any() else None
