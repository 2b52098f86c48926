"""Which waiting requests join the next step, and with how many tokens.

Budgets: tokens of one step (chunk, max_prefill), slots, rows with penalties, and pages at the worst
time to come (outlook.py). Where these are short, room gathers for a while (gather.py). At most one
request is prefilled in part; it goes on first.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import numpy.typing as npt

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.schedule.cache.cache import Cache, Lease
from appliance.runtime.schedule.draft import Draft
from appliance.runtime.schedule.gather import Gather
from appliance.runtime.schedule.outlook import Outlook
from appliance.runtime.schedule.queue import Queue
from appliance.runtime.schedule.request import Request
from appliance.runtime.schedule.running import LINGER, NewTokenRatio, Running
from appliance.runtime.wire.step import PENALIZED_MOST

Int32s = npt.NDArray[np.int32]

SHARED = 32
"""Tokens: a request that waits for another to compute as many for it waits one round."""
LATER_MOST = 64
"""Requests passed over in one round for that; a long queue is not walked to its end."""


class _Verdict(Enum):
    TAKEN = 0
    LATER = 1
    STEP_FULL = 2
    POOL_FULL = 3


class Admission:
    """Fills the prefill part of a step. `partial` is the request prefilled in part, if any."""

    def __init__(
        self,
        config: ScheduleConfig,
        queue: Queue,
        cache: Cache,
        running: Running,
        ratio: NewTokenRatio,
    ) -> None:
        self._queue = queue
        self._cache = cache
        self._running = running
        self._ratio = ratio
        self._chunked = config.chunk > 0
        self._most = config.max_prefill
        if self._chunked:
            self._most = max(config.page_size, min(config.chunk, config.max_prefill))
        self._mixed, self._mixed_tokens = config.mixed_chunk, config.mixed_tokens
        self._shared = cache.pages_of(SHARED) * cache.page_size if config.prefix_cache else 0
        self._computing: dict[tuple[str, bytes], Request] = {}
        self._admissions = 0
        self._gather = Gather(self._most)
        self._beside = False
        self.partial: Request | None = None
        self.admitted: list[int] = []
        self.prompt_tokens = 0
        self.hit_tokens = 0
        self.query_tokens = 0

    def fill(self, draft: Draft, beside: bool = False) -> None:
        """Adds prefill rows to `draft` as far as the budgets go. beside: they may be computed
        beside the steps of the rows that decode."""
        self._gather.next_turn()
        self._beside = beside
        budget = self._most
        if self._mixed and self._chunked:
            budget = max(self._cache.page_size, budget - len(self._running.ready()))
        if self.partial is not None:
            self._go_on(self.partial, draft, budget)
            if self.partial is not None:
                return
        if not len(self._queue):
            return
        if not self._running.free_slots:
            self._gather.short = True
            return
        alone = not draft.prefill_rows and self._running.count > 0
        if not alone or self._gather.due(len(self._queue), next(iter(self._queue)).since):
            self._admit(draft, budget)

    def queued(self, request: Request) -> None:
        """The request begins to wait in the queue. At its head it is tried at once."""
        request.since = self._gather.turn
        if next(iter(self._queue)) is request:
            self._gather.anew()

    def start_over(self) -> None:
        """Nothing else can go on: what waits is tried at once."""
        self._gather.anew()

    def committed(self, request: Request) -> None:
        """Its beginning is in the tree now; those that waited for it may come."""
        if request.lease is not None and request.lease.shared * self._cache.page_size >= (
            self._shared
        ):
            self._drop_claim(request)

    def left(self, request: Request) -> None:
        """The request's row has gone."""
        self._drop_claim(request)
        if self.partial is request:
            self.partial = None
        self._gather.gone(len(request.history))

    def _admit(self, draft: Draft, budget: int) -> None:
        self._gather.begin()
        outlook = self._outlook(draft)
        taken: list[Request] = []
        later = 0
        for request in self._queue.order():
            if self.partial is not None:
                break
            if not self._running.free_slots:
                self._gather.short = True
                break
            if request.sampling.penalized and self._running.penalized >= PENALIZED_MOST:
                later += 1
                self._gather.short = True
                if later > LATER_MOST:
                    break
                continue
            common = self._cache.common
            lease = self._cache.reserve(
                request.wire.cache_key, request.history[: len(request.history) - 1], request.matches
            )
            if self._cache.common > common:
                # What another row would have freed alone is held by this one too from now on.
                outlook = self._outlook(draft)
            verdict = self._try(request, lease, draft, budget - draft.tokens, outlook)
            if verdict is _Verdict.TAKEN:
                taken.append(request)
                continue
            self._cache.release(lease)
            if verdict is _Verdict.LATER and later < LATER_MOST:
                later += 1
            else:
                self._gather.short = verdict is _Verdict.POOL_FULL
                break
        self._queue.remove_all(taken)

    def _try(
        self, request: Request, lease: Lease, draft: Draft, budget: int, outlook: Outlook
    ) -> _Verdict:
        length = len(request.history)
        if budget <= 0:
            return _Verdict.STEP_FULL
        claim = self._claim(request, lease.matched)
        if claim is not None and claim in self._computing:
            return _Verdict.LATER
        end = self._chunk_end(lease.matched, length, budget, draft.prefill_rows == 0)
        if end <= lease.matched:
            return _Verdict.STEP_FULL
        rest = self._rest(request, end - lease.matched, length - lease.matched)
        common = self._cache.common_of(lease)
        if not self._fits(lease, length, rest, common, outlook):
            return _Verdict.POOL_FULL
        outlook.add(length, rest, common, self._beside)
        self._begin(request, lease, draft)
        if claim is not None:
            self._computing[claim] = request
        self._add_chunk(request, lease.matched, end, draft)
        return _Verdict.TAKEN

    def _rest(self, request: Request, chunk: int, whole: int) -> int:
        """Steps of the rows that run now until this request has ended, as expected. Where they are
        in one with a prefill, those of its chunks count: all of these, or a last one that is
        short."""
        rest = self._running.rest(request, self._ratio) + LINGER
        if self._mixed or self._most <= self._mixed_tokens:
            return rest + -(-whole // chunk)
        return rest + (self._mixed_tokens > 1)

    def _fits(self, lease: Lease, length: int, rest: int, common: int, outlook: Outlook) -> bool:
        cache = self._cache
        pages = cache.pages_of(length) - len(lease.pages)
        if pages > cache.available or self._running.count == 0:
            return pages <= cache.available
        return outlook.fits(length, rest, common, cache.total, self._beside)

    def _outlook(self, draft: Draft) -> Outlook:
        beside = draft.prefill_slots if self._beside else ()
        return self._running.outlook(self._ratio, self._cache, beside)

    def _chunk_end(self, start: int, length: int, budget: int, alone: bool) -> int:
        """Where this step's part of a prefill ends; `start` when there is no room for any."""
        if length - start <= budget:
            return length
        if not self._chunked:
            return length if alone else start
        return (start + budget) // self._cache.page_size * self._cache.page_size

    def _begin(self, request: Request, lease: Lease, draft: Draft) -> None:
        running = self._running
        self._admissions += 1
        if not request.admitted:
            self.admitted.append(request.rid)
            if request.matches:
                self.query_tokens += len(request.history)
                self.hit_tokens += lease.matched
                self._cache.hit(lease)
        slot = running.take_slot(request, lease)
        request.begin_prefill(slot, lease, self._admissions)
        running.stand(slot, lease.matched, lease.matched)
        draft.add_new(request)
        if lease.pages:
            draft.add_run(slot, 0, np.array(lease.pages, dtype=np.int32))

    def _go_on(self, request: Request, draft: Draft, budget: int) -> None:
        """The next chunk of the request in part; none while there are no pages for it."""
        start = int(self._running.position[request.slot])
        end = self._chunk_end(start, len(request.history), budget, alone=True)
        wanted = self._cache.pages_of(end) - int(self._running.capacity[request.slot]) // (
            self._cache.page_size
        )
        if wanted <= self._cache.available:
            self._add_chunk(request, start, end, draft)

    def _add_chunk(self, request: Request, start: int, end: int, draft: Draft) -> None:
        cache, running, slot, lease = self._cache, self._running, request.slot, request.lease
        assert lease is not None
        held = len(lease.pages)
        pages = cache.take(cache.pages_of(end) - held)
        lease.pages += pages.tolist()
        if len(pages):
            draft.add_run(slot, held, pages)
        running.stand(slot, end, len(lease.pages) * cache.page_size)
        draft.add_chunk(request, start, end)
        self.prompt_tokens += end - start
        if end == len(request.history):
            request.begin_decode()
            running.begin_decode(slot)
            self.partial = None
        else:
            self.partial = request

    def _claim(self, request: Request, matched: int) -> tuple[str, bytes] | None:
        """The beginning that this request would compute and others could share, if any."""
        if matched >= self._shared or len(request.history) <= self._shared or not request.matches:
            return None
        return request.wire.cache_key, request.history[: self._shared].tobytes()

    def _drop_claim(self, request: Request) -> None:
        if not self._shared:
            return
        claim = (request.wire.cache_key, request.history[: self._shared].tobytes())
        if self._computing.get(claim) is request:
            del self._computing[claim]
