"""Requests that hold a slot: their decode state in arrays by slot, page growth, whom to retract.

Arrays speak of what was *launched*, which is known before any token is: positions advance by one
a step whatever is sampled. Python objects are touched only where a page is added, and tables by
slot only for rows that were not in the step before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from appliance.runtime.schedule.cache.cache import Cache, Lease
from appliance.runtime.schedule.cohort import Cohort, Places
from appliance.runtime.schedule.ends import Ends
from appliance.runtime.schedule.lengths import Lengths
from appliance.runtime.schedule.newest import Newest
from appliance.runtime.schedule.outlook import Outlook
from appliance.runtime.schedule.request import Request
from appliance.runtime.wire.request import Sampling

Int32s = npt.NDArray[np.int32]

RESERVE_MOST = 4096
"""Tokens of one request's rest that admission reckons with, at most."""
LINGER = 1
"""Steps for which a row that has ended keeps its pages: its last flight is still in the air."""
REFRESH_EVERY = 16
"""Outlooks for which what is known of lengths serves."""
_FAR = 1 << 30
"""Steps to the end of no row."""


class NewTokenRatio:
    """Share of max_tokens that running requests are expected to use yet, at most.

    Falls from its start to its floor over 600 decode steps; retraction corrects it upward. caution:
    how many times what lengths that were seen say of them is believed; the same moves it, from one.
    """

    STEPS = 600
    AHEAD = 20
    GROWTH, MOST = 2.0, 16.0

    def __init__(self, conservativeness: float) -> None:
        self.start = min(0.7 * conservativeness, 1.0)
        self.floor = 0.14 * self.start
        self._fall = (self.start - self.floor) / self.STEPS
        self.value = self.start
        self.least = self.caution = max(1.0, conservativeness)

    def decay(self) -> None:
        self.value = max(self.floor, self.value - self._fall)
        self.caution = max(self.least, self.caution - self.MOST / self.STEPS)

    def correct(self, decoded: int, rows: int, most: int) -> None:
        """decoded, most: sums over the rows kept of output so far and of max_tokens."""
        self.value = min(1.0, (decoded + self.AHEAD * rows) / (most + 1))
        self.caution = min(self.MOST, self.caution * self.GROWTH)

    def reset(self) -> None:
        self.value, self.caution = self.start, self.least


class Running:
    """Slots 0 .. max_running - 1.

    By slot, to be read only: position: next position to compute. end: decode computes positions
    below it only, so that a row whose end by length is known is not launched again. capacity:
    positions its pages cover. beside: steps in the air with this row that run beside decode steps.
    decoding: takes part in decode steps. constrained: its output is under a grammar. tenancy: how
    often the slot was taken. flights: steps in the air with this row, counted by others.

    penalized, grammars: how many rows have some. tokens: what outputs got last. ends: whose rows
    they are and when they may end. lengths: what rows that may stop by themselves took.
    """

    def __init__(self, max_running: int, context: int) -> None:
        n = max_running
        self.requests: list[Request | None] = [None] * n
        self.position = np.zeros(n, dtype=np.int32)
        self.end = np.zeros(n, dtype=np.int32)
        self.capacity = np.zeros(n, dtype=np.int32)
        self.prompt_length = np.zeros(n, dtype=np.int32)
        self.flights = np.zeros(n, dtype=np.int32)
        self.beside = np.zeros(n, dtype=np.int32)
        self.decoding = np.zeros(n, dtype=np.bool_)
        self.ends = Ends(n)
        self.tokens = Newest(n)
        self._add_page: list[Callable[[int], None]] = [_no_row] * n
        self.constrained = np.zeros(n, dtype=np.bool_)
        self.tenancy = np.zeros(n, dtype=np.int32)
        self.penalized = self.grammars = 0
        self.lengths = Lengths()
        self._outlooks = 0
        self._ready: Cohort | None = None
        self._surely = np.zeros(n, dtype=np.bool_)
        self._context = context
        self._moved: dict[int, list[tuple[int, Int32s]]] = {}
        self._free = list(range(n - 1, -1, -1))
        self._freed: list[int] = []

    @property
    def free_slots(self) -> int:
        return len(self._free)

    @property
    def count(self) -> int:
        return len(self.requests) - len(self._free)

    def rows(self) -> list[Request]:
        """Every request with a slot, those that only wait for their last flight too."""
        return [r for r in self.requests if r is not None]

    def leases(self) -> list[Lease]:
        return [r.lease for r in self.requests if r is not None and r.lease is not None]

    def last_length(self, request: Request) -> int:
        """Length of prompt and output at which the request ends at the latest."""
        most = len(request.prompt) + request.sampling.max_tokens
        return min(most, self._context)

    def take_slot(self, request: Request, lease: Lease) -> int:
        slot = self._free.pop()
        sampling: Sampling = request.sampling
        self.requests[slot] = request
        self.tenancy[slot] += 1
        self.penalized += sampling.penalized
        self.prompt_length[slot] = len(request.prompt)
        self.end[slot] = self.last_length(request) - 1
        self.flights[slot] = 0
        self.end_decode(slot)
        self.constrained[slot] = request.constraint is not None
        self.grammars += request.constraint is not None
        self.ends.take(slot, request, int(self.end[slot]) - len(request.prompt))
        self.tokens.begin(slot, request.output)
        request.gathers_in(self.tokens)
        self._add_page[slot] = lease.pages.append
        self._surely[slot] = not sampling.stop_ids
        return slot

    def ended(self, request: Request) -> None:
        """For good: how many tokens it took is remembered."""
        if request.sampling.stop_ids and request.output:
            short = len(request.prompt) + len(request.output) < self.last_length(request)
            self.lengths.ended(len(request.output), short)

    def rest(self, request: Request, ratio: NewTokenRatio) -> int:
        """Tokens that a request is expected to take yet once it runs: all that it may, unless
        those that were seen stopped before."""
        most = min(max(0, self.last_length(request) - 1 - len(request.history)), RESERVE_MOST)
        if not request.sampling.stop_ids:
            return most
        now, bound = (np.array([n], dtype=np.int32) for n in (len(request.output), most))
        expected = float(self.lengths.expected(now, bound)[0])
        return min(most, math.ceil(expected * ratio.caution))

    def leave_slot(self, slot: int) -> None:
        request = self.requests[slot]
        assert request is not None
        self.penalized -= request.sampling.penalized
        self.grammars -= bool(self.constrained[slot])
        self.requests[slot], self._add_page[slot] = None, _no_row
        self.tokens.end(slot)
        request.gathers_in(None)
        self.end_decode(slot)
        self._moved.pop(slot, None)
        self._free.append(slot)
        self._freed.append(slot)

    def move(self, slot: int, column: int, pages: Int32s) -> None:
        """The row reads `pages`, from `column` on, instead of its own; the next step says so."""
        self._moved.setdefault(slot, []).append((column, pages))

    def take_moved(self, slots: Iterable[int] | None = None) -> list[tuple[int, int, Int32s]]:
        """(slot, column, pages) moved since the last call; of these slots alone, if given."""
        taken = list(self._moved if slots is None else (s for s in slots if s in self._moved))
        return [(slot, *part) for slot in taken for part in self._moved.pop(slot)]

    def take_freed(self) -> list[int]:
        """Slots left since the last call, for the next step."""
        freed, self._freed = self._freed, []
        return freed

    def any_constrained(self, slots: Int32s | list[int]) -> bool:
        """Whether any of these rows is under a grammar; asked for every step."""
        return self.grammars > 0 and bool(self.constrained[slots].any())

    def stand(self, slot: int, position: int, capacity: int) -> None:
        """Where a row has come to by another step than one of decoding."""
        self.position[slot], self.capacity[slot] = position, capacity
        self._ready = None

    def begin_decode(self, slot: int) -> None:
        self.decoding[slot] = True
        self._ready = None

    def end_decode(self, slot: int) -> None:
        self.decoding[slot] = False
        self._ready = None

    def begin_beside(self, slots: list[int]) -> None:
        """A step with these rows runs beside decode steps from now on."""
        self.beside[slots] += 1
        self._ready = None

    def end_beside(self, slots: Int32s) -> None:
        self.beside[slots] -= 1
        self._ready = None

    def ready(self) -> Cohort:
        """Rows that a decode step is to compute, by slot."""
        if self._ready is None:
            computed = self.decoding & (self.beside == 0)
            self._ready = self._cohort((computed & (self.position < self.end)).nonzero()[0])
        return self._ready

    def without(self, cohort: Cohort, slots: list[int]) -> Cohort:
        """Those rows of it that are not in `slots`."""
        others = ~np.isin(cohort.slots, slots)
        return cohort if others.all() else self._cohort(cohort.at[others])

    def grow(self, cohort: Cohort, rows: Places, cache: Cache) -> tuple[Int32s, Int32s, Int32s]:
        """Gives each of these rows one page: slots, columns and ids. Pages are available."""
        at, pages = cohort.at[rows], cache.take(len(rows))
        capacity = cohort.capacity[rows]
        cohort.capacity[rows] = self.capacity[at] = capacity + cache.page_size
        for slot, page in zip(at.tolist(), pages.tolist(), strict=True):
            self._add_page[slot](page)
        return cohort.slots[rows], capacity // cache.page_size, pages

    def advance(self, cohort: Cohort) -> None:
        """A decode step with all its rows is launched."""
        cohort.advance()
        self.position[cohort.at] = cohort.starts
        if cohort is not self._ready or not cohort.left:
            self._ready = None

    def _cohort(self, at: Places) -> Cohort:
        starts = self.position[at]
        return Cohort(
            slots=at.astype(np.int32),
            at=at,
            starts=starts,
            outputs=starts + 1 - self.prompt_length[at],
            capacity=self.capacity[at],
            left=int((self.end[at] - starts).min(initial=_FAR)),
        )

    def outlook(self, ratio: NewTokenRatio, cache: Cache, beside: Iterable[int] = ()) -> Outlook:
        """What decoding rows are expected to hold until they end; others keep what they hold.
        beside: slots whose prompts end in a step that may run beside others; those in the air do
        as well."""
        slots = np.flatnonzero(self.decoding)
        position = self.position[slots]
        rest = self._expected(slots, ratio) + LINGER
        common = np.zeros(len(slots), dtype=np.int32)
        if cache.common:
            for i, slot in enumerate(slots.tolist()):
                request = self.requests[slot]
                assert request is not None and request.lease is not None
                common[i] = cache.common_of(request.lease)
        theirs = int((self.capacity[slots] // cache.page_size - common).sum())
        last = (self.beside[slots] > 0) | np.isin(slots, list(beside))
        now = ~last
        found = Outlook(cache.page_size, position[now], rest[now], common[now], cache.held - theirs)
        for at in np.flatnonzero(last).tolist():
            found.add(int(position[at]), int(rest[at]), int(common[at]), last=True)
        return found

    def _expected(self, slots: npt.NDArray[np.intp], ratio: NewTokenRatio) -> Int32s:
        """Tokens that decoding rows are expected to take yet: all that they may where they cannot
        stop before, else the smaller of what the ratio and the lengths that were seen say."""
        rest: Int32s = np.clip(self.end[slots] - self.position[slots], 0, RESERVE_MOST)
        may = np.flatnonzero(~self._surely[slots])
        if len(may):
            own = slots[may]
            tokens = self.position[own] + 1 - self.prompt_length[own]
            if self._outlooks % REFRESH_EVERY == 0:
                self.lengths.refresh(tokens)
            self._outlooks += 1
            seen = self.lengths.expected(tokens, rest[may]) * ratio.caution
            rest[may] = np.ceil(np.minimum(rest[may] * ratio.value, seen))
        return rest


def _no_row(page: int) -> None:
    raise AssertionError(f"page {page} for a slot without a row")


def by_loss(requests: Iterable[Request]) -> list[Request]:
    """Whom to keep first when pages run out: most output, then shortest prompt, then oldest."""
    return sorted(requests, key=lambda r: (-len(r.output), len(r.prompt), r.admitted))
