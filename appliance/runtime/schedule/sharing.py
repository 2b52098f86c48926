"""Decode rows that begin alike stand together in a step, so that their common pages are read once.

Done only where it saves as many pages as the config asks for; the groups are found anew every few
steps, and rows that came since are in none till then.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from appliance.runtime.schedule.cache.shared import groups_of
from appliance.runtime.schedule.cohort import Places
from appliance.runtime.schedule.running import Running
from appliance.runtime.wire.step import SharedRuns

Int32s = npt.NDArray[np.int32]

REGROUP_EVERY = 16
"""Decode steps between two looks at the tree, each some 1.5 ms at a thousand rows."""

_NONE: Int32s = np.empty(0, dtype=np.int32)


class Sharing:
    """least: pages that one step must read less; 0: rows are never arranged."""

    def __init__(self, running: Running, least: int) -> None:
        self._running, self._least = running, least
        slots = len(running.requests)
        self._group = np.full(slots, -1, dtype=np.int32)
        self._tenancy = np.full(slots, -1, dtype=np.int32)
        self._pages = _NONE
        self._known = _NONE
        self._steps = REGROUP_EVERY

    def arrange(self, slots: Int32s) -> tuple[Places | None, SharedRuns | None]:
        """An order in which those of groups come first, and what the groups share."""
        if not self._least or len(slots) < 2:
            return None, None
        self._steps += 1
        if self._steps >= REGROUP_EVERY and self._changed(slots):
            self._regroup(slots)
        own = self._tenancy[slots] == self._running.tenancy[slots]
        group = np.where(own, self._group[slots], -1)
        rows = np.bincount(group[group >= 0], minlength=len(self._pages))
        kept = np.flatnonzero(rows > 1)
        if int(((rows[kept] - 1) * self._pages[kept]).sum()) < self._least:
            return None, None
        place = np.full(len(self._pages) + 1, len(self._pages), dtype=np.int32)
        place[kept] = np.arange(len(kept), dtype=np.int32)
        order = np.argsort(place[group], kind="stable")  # -1: the last entry, after all groups
        return order, SharedRuns(rows[kept].astype(np.int32), self._pages[kept])

    def _changed(self, slots: Int32s) -> bool:
        if not np.array_equal(slots, self._known):
            return True
        return bool((self._tenancy[slots] != self._running.tenancy[slots]).any())

    def _regroup(self, slots: Int32s) -> None:
        self._steps, self._known = 0, slots
        self._group[:] = -1
        self._tenancy[slots] = self._running.tenancy[slots]
        leases = []
        for slot in slots.tolist():
            request = self._running.requests[slot]
            assert request is not None and request.lease is not None
            leases.append(request.lease)
        groups = groups_of(leases)
        for number, group in enumerate(groups):
            self._group[slots[group.members]] = number
        self._pages = np.array([g.pages for g in groups], dtype=np.int32)
