"""Scheduler: requests in, Steps out, results in, deltas out. It owns the queue, the cache, the
running rows and their settling, and ties them together; the parts never hold the scheduler.
"""

from __future__ import annotations

import logging

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.schedule import together
from appliance.runtime.schedule.admit import Admission
from appliance.runtime.schedule.cache.cache import Cache
from appliance.runtime.schedule.constrain import Waiting, add_forced, masks_of
from appliance.runtime.schedule.draft import Draft
from appliance.runtime.schedule.grammar.shelf import Shelf
from appliance.runtime.schedule.queue import LOOK_UP_MOST, Queue
from appliance.runtime.schedule.refuse import refusal
from appliance.runtime.schedule.request import Request, State
from appliance.runtime.schedule.running import NewTokenRatio, Running, by_loss
from appliance.runtime.schedule.settle import Next, Settle
from appliance.runtime.schedule.sharing import Sharing
from appliance.runtime.wire.delta import SharedPrefix, StepStats, TokenDelta
from appliance.runtime.wire.request import TokenRequest
from appliance.runtime.wire.step import Masks, Step, StepResult

log = logging.getLogger(__name__)

TOUCH_EVERY = 32
"""Steps between two touches of what waiting requests would find in the cache."""
ROOM_AHEAD = 20
"""Decode steps for which pages are freed at once after a retraction."""
PREFIXES_TOLD = 8
BESIDE_MOST = 2
"""Steps beside decode steps in the air: one at work, one that waits for it."""


class _Counts:
    """decodes: since the last forced retraction; beside: in the air; the others only grow."""

    __slots__ = (
        "aborts", "beside", "decodes", "generated", "launched", "requests", "retractions",
        "settled",
    )  # fmt: skip

    def __init__(self) -> None:
        self.aborts = self.beside = self.decodes = self.generated = self.launched = 0
        self.requests = self.retractions = self.settled = 0


class Scheduler:
    """total_pages: usable pages, ids 1 .. total_pages. context: longest prompt and output.

    Steps must be settled in the order they were made; those with `beside` in their own order, and
    before any later step that has prefill rows. `next_step` gives None when there is nothing to do,
    or nothing before what is in the air has settled.
    """

    def __init__(
        self,
        config: ScheduleConfig,
        total_pages: int,
        context: int,
        max_running: int,
        vocab: int,
        shelf: Shelf | None = None,
    ) -> None:
        self._config = config
        self._context, self._vocab = context, vocab
        self.cache = Cache(total_pages, config.page_size, config.prefix_cache)
        self.queue = Queue(config.policy, self.cache)
        self.running = Running(max_running, context)
        self._ratio = NewTokenRatio(config.conservativeness)
        self._admission = Admission(config, self.queue, self.cache, self.running, self._ratio)
        self._settle = Settle(self.running)
        self._sharing = Sharing(self.running, config.share_from)
        self._waiting = Waiting(shelf, vocab, config.jump_forward)
        self._live: dict[int, Request] = {}
        self._ending: list[Request] = []
        self._notices: list[TokenDelta] = []
        self._counts = _Counts()

    @property
    def idle(self) -> bool:
        """Nothing can go on: nothing is queued and nothing holds a slot."""
        return not len(self.queue) and self.running.count == 0

    @property
    def compiling(self) -> bool:
        """A request waits for its grammar; nobody says when it is there."""
        return len(self._waiting) > 0

    @property
    def in_air(self) -> int:
        return self._counts.launched - self._counts.settled

    def add(self, wire: TokenRequest, owner: int = 0) -> None:
        """Takes a request; one of the same id that lives is dropped for it, without a word. owner:
        comes back with its next tokens.

        What can never run ends at once: its delta is among `notices`.
        """
        self.abort(wire.rid)
        self._counts.requests += 1
        request = Request(wire, self._counts.requests, owner)
        ended = refusal(request, self._context, self._vocab, self.cache)
        if ended is None and wire.grammar is not None:
            ended = self._waiting.add(request)
        if ended is not None:
            request.finish()
            self._notices.append(ended)
            return
        self._live[wire.rid] = request
        if wire.grammar is None:
            self._queue(request)

    def abort(self, rid: int) -> None:
        """Drops a request. No delta follows; its pages are free when no flight can write them."""
        self._notices = [n for n in self._notices if n.rid != rid]
        request = self._live.pop(rid, None)
        if request is None:
            return
        self._counts.aborts += 1
        if request.state is State.WAITING:
            if not self._waiting.drop(rid):
                self.queue.remove(request)
            request.finish()
            return
        request.finish()
        self._end(request)

    def flush_cache(self) -> None:
        """Empties the prefix cache of everything no row uses."""
        self.cache.clear()

    def next_step(self) -> Step | None:
        counts = self._counts
        if self.compiling:
            self._queue_compiled()
        if self._config.retract_every and counts.decodes >= self._config.retract_every:
            if self.in_air:
                return None
            self._retract_newest()
        draft = Draft()
        if counts.beside < BESIDE_MOST:
            may = together.may_run_beside(self._config, self.running, len(self.queue))
            self._admission.fill(draft, may)
        if draft.rows and together.runs_beside(
            self._config, self.running, self.cache, draft, counts.beside
        ):
            return self._launched(draft, beside=True)
        if not draft.rows or together.mixes(self._config, self.running, draft):
            fits = self._add_decode(draft)
            if not draft.rows and self.in_air:
                return None
            if not fits and not draft.rows:
                self._make_room()
                self._add_decode(draft)
        if not draft.rows:
            self._start_over(draft)
        if not draft.rows:
            assert self.idle, "requests wait and none can go on"
            return None
        return self._launched(draft)

    def masks(self, step: Step) -> Masks | None:
        """Allowed tokens of the constrained rows of `step`; all before it are settled. Once."""
        if not self.running.any_constrained(step.slots):
            return None
        masks, faults = masks_of(self.running, step)
        for request, fault in faults:
            self._notices.append(self._settle.fail(request, str(fault), fault.code))
            del self._live[request.rid]
            self._end(request)
        return masks

    def settle(self, step: Step, result: StepResult) -> tuple[Next, list[TokenDelta]]:
        """Takes what came of the oldest step in the air: rows of which there is no more to say
        than their next token, and the deltas of the others, those of `notices` among them."""
        self._counts.settled += 1
        self._counts.beside -= step.beside
        settled = self._settle.settle(step, result)
        self._counts.generated += settled.generated
        for request in settled.computed:
            if request.state is not State.DONE and self._may_commit(request):
                known = request.history[: request.computed]
                assert request.lease is not None
                column, pages = self.cache.commit(request.lease, known)
                if len(pages):
                    self.running.move(request.slot, column, pages)
                self._admission.committed(request)
        for request in settled.ended:
            del self._live[request.rid]
            self._ending.append(request)
        ending, self._ending = self._ending, []
        for request in ending:
            self._end(request)
        if self.idle:
            self._ratio.reset()
            assert self.cache.whole, "pages are lost"
        return settled.next, [*self.notices(), *settled.deltas]

    def notices(self) -> list[TokenDelta]:
        """Deltas that came of no step (refusals, ends for want of pages) since the last call."""
        notices, self._notices = self._notices, []
        return notices

    def admitted(self) -> list[int]:
        """Requests that got their first pages since the last call."""
        admitted, self._admission.admitted = self._admission.admitted, []
        return admitted

    def stats(self) -> StepStats:
        """The scheduler's part; times and generation are the caller's."""
        page, counts, admission = self.cache.page_size, self._counts, self._admission
        partial = admission.partial
        return StepStats(
            steps=counts.settled,
            running=self.running.count,
            waiting=len(self.queue) + len(self._waiting),
            used_tokens=self.cache.held * page,
            cached_tokens=self.cache.evictable * page,
            total_tokens=self.cache.total * page,
            prompt_tokens=admission.prompt_tokens,
            cache_hit_tokens=admission.hit_tokens,
            cache_query_tokens=admission.query_tokens,
            generated_tokens=counts.generated,
            retractions=counts.retractions,
            evicted_tokens=self.cache.evicted * page,
            new_token_ratio=self._ratio.value,
            aborts=counts.aborts,
            partial_rid=-1 if partial is None else partial.rid,
            partial_tokens=0 if partial is None else int(self.running.position[partial.slot]),
            shared=tuple(SharedPrefix(*s) for s in self.cache.most_shared(PREFIXES_TOLD)),
        )

    def check(self) -> None:
        """Walks all state. AssertionError says what does not hold."""
        self.cache.check(self.running.leases())
        rows = self.running.rows()
        assert all(r.state is not State.WAITING for r in rows), "a waiting request has a row"
        assert all(r.state is State.WAITING for r in self.queue), "the queue holds a row"
        waiting = [*self.queue, *self._waiting.requests()]
        known = {r.rid: r for r in [*waiting, *(r for r in rows if r.state is not State.DONE)]}
        assert known == self._live, "a request is lost"
        if self.in_air == 0:
            assert not self._ending and not self.running.flights.any(), "a row waits for no flight"

    def _may_commit(self, request: Request) -> bool:
        """Pages that commit finds to be there already are free at once; a step beside others may
        still read them, and no other waits for it."""
        return request.lease is not None and not self.running.beside[request.slot]

    def _launched(self, draft: Draft, beside: bool = False) -> Step:
        counts = self._counts
        counts.launched += 1
        if counts.launched % TOUCH_EVERY == 0 and len(self.queue):
            self.queue.touch(LOOK_UP_MOST)
        if len(draft.decode_at):
            counts.decodes += 1
            self._ratio.decay()
        # a decode step does not wait for one beside it, so it must be told itself of its own rows
        moved = self.running.take_moved(draft.prefill_slots if beside else None)
        for slot, column, pages in moved:
            draft.add_run(slot, column, pages)
        if draft.prefill_rows:
            self.running.flights[draft.prefill_slots] += 1
        self.running.flights[draft.decode_at] += 1
        if beside:
            counts.beside += 1
            self.running.begin_beside(draft.prefill_slots)
        return draft.step(counts.launched, self.running.take_freed(), beside)

    def _queue(self, request: Request) -> None:
        self.queue.add(request)
        self._admission.queued(request)

    def _queue_compiled(self) -> None:
        """Requests whose grammar has come join the queue, or end with what it was refused for."""
        begin, end = self._waiting.ready()
        for request in begin:
            self._queue(request)
        for request, delta in end:
            request.finish()
            del self._live[request.rid]
            self._notices.append(delta)

    def _add_decode(self, draft: Draft) -> bool:
        """Adds all rows that decode; False, and nothing added, when pages are short."""
        running = self.running
        rows = running.ready()
        if draft.prefill_rows:
            rows = running.without(rows, draft.prefill_slots)
        # a step that computes forced tokens waits for what runs beside, and every row with it
        if not self._counts.beside and running.any_constrained(rows.slots):
            add_forced(running, self.cache, rows.slots, draft)
            rows = running.without(rows, draft.prefill_slots)
        crossing = rows.crossing()
        if len(crossing):
            if len(crossing) > self.cache.available:
                return False
            draft.add_pages(*running.grow(rows, crossing, self.cache))
        draft.add_decode(rows, *self._sharing.arrange(rows.slots))
        running.advance(rows)
        return True

    def _end(self, request: Request) -> None:
        """A request that is done leaves its row, or waits for the last flight that writes it."""
        running, slot, lease = self.running, request.slot, request.lease
        assert lease is not None
        running.end_decode(slot)
        self._admission.left(request)
        if running.flights[slot]:
            self._ending.append(request)
            return
        running.ended(request)
        if not request.invalid:
            known = request.known()
            self.cache.commit(lease, known[: int(running.position[slot])])
        self.cache.release(lease, forget=request.invalid)
        running.leave_slot(slot)
        request.leave_row()

    def _retract(self, request: Request) -> None:
        """Back to the queue with its output; nothing is in the air. What filled the pool ends."""
        assert request.lease is not None and not self.running.flights[request.slot]
        length = len(request.prompt) + len(request.output)
        if self.cache.pages_of(length) > self.cache.total:
            self._fail(request, length)
            return
        self._admission.left(request)
        self.cache.release(request.lease)
        self.running.leave_slot(request.slot)
        request.wait_again()
        self._queue(request)
        self._counts.retractions += 1

    def _retract_newest(self) -> None:
        self._counts.decodes = 0
        rows = self.running.rows()
        if rows:
            self._retract(max(rows, key=lambda r: r.admitted))

    def _make_room(self) -> None:
        """Retracts until the rest can take one more step. Nothing is in the air."""
        rows = by_loss(self.running.rows())
        before, count, held = self._ratio.value, len(rows), self.cache.held
        while len(rows) > 1 and self._short():
            self._retract(rows.pop())
        if self._short():
            last = rows.pop()
            self._fail(last, int(self.running.position[last.slot]) + 1)
        self._ratio.correct(
            sum(len(r.output) for r in rows), len(rows), sum(r.sampling.max_tokens for r in rows)
        )
        self.cache.free_up(self.cache.pages_of(ROOM_AHEAD * len(rows)))
        log.info(
            "page pool full: %d of %d requests retracted, %d tokens gained, "
            "new token ratio %.3f -> %.3f",
            count - len(rows),
            count,
            (held - self.cache.held) * self.cache.page_size,
            before,
            self._ratio.value,
        )

    def _short(self) -> bool:
        return len(self.running.ready().crossing()) > self.cache.available

    def _fail(self, request: Request, length: int) -> None:
        """Ends a row whose next `length` positions the whole pool cannot hold."""
        assert self.cache.pages_of(length) > self.cache.total
        self._notices.append(
            self._settle.fail(
                request,
                f"This request needs cache pages for {length} tokens now, and the whole pool has "
                f"{self.cache.total * self.cache.page_size}.",
            )
        )
        del self._live[request.rid]
        self._end(request)

    def _start_over(self, draft: Draft) -> None:
        """Nothing can go on and nothing is in the air: what waits is tried with all pages free."""
        self._admission.start_over()
        self._admission.fill(draft)
