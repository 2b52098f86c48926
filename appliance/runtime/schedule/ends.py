"""Ends: whose rows are in the slots, and at which tokens they may end; by slot, and of one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.runtime.schedule.request import Request

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

STOP_WIDTH = 8
"""Stop ids compared in one array operation; a request with more is looked at by itself."""
NO_TOKEN = -2
"""Fills the stop table; neither a token nor the -1 of a row that does not sample."""


@dataclass(frozen=True, slots=True)
class RowEnds:
    """slots int32 [rows], as a step has them; at: the same as an index.

    rids int64, owners int32 [rows]: of their requests.

    stops int32 [STOP_WIDTH, rows]: the stop ids of each, which count from output `first` on; from
    output `last` on a row is looked at by itself, whatever its token. int32 [rows].
    """

    slots: Int32s
    at: npt.NDArray[np.intp]
    rids: Int64s
    owners: Int32s
    stops: Int32s
    first: Int32s
    last: Int32s


class Ends:
    def __init__(self, slots: int) -> None:
        self._rids = np.zeros(slots, dtype=np.int64)
        self._owners = np.zeros(slots, dtype=np.int32)
        self._stops = np.full((STOP_WIDTH, slots), NO_TOKEN, dtype=np.int32)
        self._first = np.zeros(slots, dtype=np.int32)
        self._last = np.zeros(slots, dtype=np.int32)
        self._known = self._of(np.empty(0, dtype=np.int32))

    def take(self, slot: int, request: Request, last: int) -> None:
        """A row takes its slot. last: the index in its output of the last token it may take."""
        sampling = request.sampling
        count = len(sampling.stop_ids)
        special = count > STOP_WIDTH or sampling.logprobs >= 0 or request.constraint is not None
        self._rids[slot], self._owners[slot] = request.rid, request.owner
        self._stops[:, slot] = NO_TOKEN
        if count <= STOP_WIDTH:
            self._stops[:count, slot] = sampling.stop_ids
        self._first[slot] = sampling.min_tokens
        self._last[slot] = 0 if special else last

    def of(self, slots: Int32s) -> RowEnds:
        """Of the rows of a step in the air. The same array has the same rows: who has left its slot
        is in none of those, and who takes it is in a new one."""
        if self._known.slots is not slots:
            self._known = self._of(slots)
        return self._known

    def _of(self, slots: Int32s) -> RowEnds:
        at = slots.astype(np.intp)
        return RowEnds(
            slots=slots,
            at=at,
            rids=self._rids[at],
            owners=self._owners[at],
            stops=self._stops[:, at],
            first=self._first[at],
            last=self._last[at],
        )
