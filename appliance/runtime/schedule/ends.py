"""Ends: at which tokens rows may end, by slot; and those of one step, by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.runtime.wire.request import Sampling

Int32s = npt.NDArray[np.int32]

STOP_WIDTH = 8
"""Stop ids compared in one array operation; a request with more is looked at by itself."""
NO_TOKEN = -2
"""Fills the stop table; neither a token nor the -1 of a row that does not sample."""


@dataclass(frozen=True, slots=True)
class RowEnds:
    """slots int32 [rows], as a step has them; at: the same as an index.

    stops int32 [STOP_WIDTH, rows]: the stop ids of each, which count from output `first` on; from
    output `last` on a row is looked at by itself, whatever its token. int32 [rows].
    """

    slots: Int32s
    at: npt.NDArray[np.intp]
    stops: Int32s
    first: Int32s
    last: Int32s


class Ends:
    def __init__(self, slots: int) -> None:
        self._stops = np.full((STOP_WIDTH, slots), NO_TOKEN, dtype=np.int32)
        self._first = np.zeros(slots, dtype=np.int32)
        self._last = np.zeros(slots, dtype=np.int32)
        self._known = self._of(np.empty(0, dtype=np.int32))

    def take(self, slot: int, sampling: Sampling, last: int, special: bool) -> None:
        """A row takes its slot. last: the index in its output of the last token that it may take.
        special: each of its tokens is looked at by itself."""
        count = len(sampling.stop_ids)
        self._stops[:, slot] = NO_TOKEN
        if count <= STOP_WIDTH:
            self._stops[:count, slot] = sampling.stop_ids
        self._first[slot] = sampling.min_tokens
        self._last[slot] = 0 if special or count > STOP_WIDTH else last

    def of(self, slots: Int32s) -> RowEnds:
        """Of the rows of a step in the air. The same array has the same rows: who has left its slot
        is in none of those, and who takes it is in a new one."""
        if self._known.slots is not slots:
            self._known = self._of(slots)
        return self._known

    def _of(self, slots: Int32s) -> RowEnds:
        at = slots.astype(np.intp)
        return RowEnds(slots, at, self._stops[:, at], self._first[at], self._last[at])
