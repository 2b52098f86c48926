"""The loop of an engine's rank 0: drain, next step, launch, settle; plain or overlapped."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from appliance.runtime.schedule.desk import Desk, Door
from appliance.runtime.schedule.phases import Phases, Span
from appliance.runtime.schedule.pulse import Pulse
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.wire.delta import StepStats
from appliance.runtime.wire.step import Executor, Flight, Step

IDLE_WAIT = 0.25
"""Seconds an idle loop waits for a message before it gives a sign of life."""
COMPILE_WAIT = 0.005
"""The same while a grammar is being compiled, for its coming is not a message."""
HELD_ROWS = 64
"""Rows up to which the next step is put off while one runs."""
HELD_MARGIN = 0.002
"""Seconds before that one's end at which it is launched: choosing and queueing it takes one."""
HELD_LOOK_MS = 1
"""How often it is asked whether that one has ended sooner than thought."""
CHORES_SHARE = 10
"""Between steps, chores take at most one of so many parts of the time."""
STATS_EVERY = 0.1
"""Least seconds between two StepStats."""


class Loop:
    """depth: flights kept in the air beside the one being settled (ScheduleConfig.depth).

    beat(steps, limit_s) is called from the loop itself at least once a second, or says before a
    longer step how long the silence may be. warmup: (tokens, seconds) of a step timed before.
    span: makes spans of a trace, where one is taken. clock: seconds that only grow.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        door: Door,
        depth: int,
        generation: int = 0,
        beat: Callable[[int, float], None] = lambda steps, limit_s: None,
        warmup: tuple[int, float] | None = None,
        span: Span | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stopping = False
        self._scheduler = scheduler
        self._executor = executor
        self._desk = Desk(door, scheduler)
        self._depth = depth
        self._generation = generation
        self._pulse = Pulse(beat, warmup)
        self._watch = _Watch()
        self._phases = Phases(span, clock)
        self._clock = clock
        self._flying: deque[Flight] = deque()
        self._beside: deque[Flight] = deque()
        self._chores_from = 0.0
        self._sampled = 0

    def run(self) -> None:
        """Serves until `stop`. What the executor raises ends it."""
        while not self.stopping:
            self.turn()

    def turn(self) -> None:
        """Takes what has come, launches a step if there is one, settles what is not to stay in the
        air."""
        flying, beside = self._flying, self._beside
        self._drain(idle=self._scheduler.idle and not flying and not beside)
        self._hold()
        step = self._next_step()
        if step is not None and step.beside:
            beside.append(self._launch(step))
            beside[-1].sample(None)  # none of its rows is under a grammar
            return
        if step is not None:
            flying.append(self._launch(step))
        while beside and (beside[0].done() or not flying):
            self._settle_beside()
        while flying:
            head = flying[0]
            self._sample(head)
            if step is not None and len(flying) <= self._depth:
                break
            self._settle_head()
        if step is not None and not beside:  # decode steps would wait for what runs beside them
            self._chore(busy=True)

    def stop(self) -> None:
        """The loop ends before its next step. May be called from a signal's function."""
        self.stopping = True

    def _settle_head(self) -> None:
        """The oldest step that is not beside others, after those that it may go on from."""
        head = self._flying.popleft()
        if head.step.prefill_rows:
            while self._beside and self._beside[0].step.id < head.step.id:
                self._settle_beside()
        self._settle(head)

    def _settle_beside(self) -> None:
        """The oldest beside decode steps, after prefills before it that it may go on from."""
        head = self._beside.popleft()
        while any(f.step.prefill_rows and f.step.id < head.step.id for f in self._flying):
            earlier = self._flying.popleft()
            self._sample(earlier)
            self._settle(earlier)
        self._settle(head)

    def _hold(self) -> None:
        """Puts the next step off until it is needed, so that who comes meanwhile is in it. With few
        rows alone, where a step more or less is what a first token waits for."""
        if len(self._flying) != 1 or self._beside:
            return
        head = self._flying[0]
        if head.step.prefill_rows or len(head.step.slots) > HELD_ROWS or head.done():
            return
        until = self._watch.landed + self._watch.expected(len(head.step.slots)) - HELD_MARGIN
        with self._phases.wait:
            while (left := int((until - self._clock()) * 1000)) > 0:
                self._desk.drain(min(left, HELD_LOOK_MS) / 1000)
                if self.stopping or head.done():
                    break

    def _drain(self, idle: bool) -> None:
        """Takes what has come. Waits for the first of it when there is nothing else to do, not even
        a chore: whoever came during one waits for no other."""
        if idle:
            self._tell_idle()
        block = idle and not self._chore(busy=False)
        wait = COMPILE_WAIT if self._scheduler.compiling else IDLE_WAIT
        self._desk.drain(wait if block else 0.0)

    def _chore(self, busy: bool) -> bool:
        """Does one of the executor's chores; whether there was any. busy: there are steps."""
        began = self._clock()
        if busy and began < self._chores_from:
            return False
        work = self._executor.chore(busy)
        if work is None:
            return False
        self._pulse.chore(self._watch.steps, began)
        work()
        ended = self._clock()
        self._chores_from = ended + (CHORES_SHARE - 1) * (ended - began)
        return True

    def _next_step(self) -> Step | None:
        with self._phases.schedule:
            step = self._scheduler.next_step()
        notices, admitted = self._scheduler.notices(), self._scheduler.admitted()
        if admitted:
            self._desk.admitted(admitted)
        if notices:
            self._desk.send(notices)
        return step

    def _launch(self, step: Step) -> Flight:
        now = self._clock()
        self._watch.launched[step.id] = now
        # On a CPU the forward pass may run inside launch; on a GPU the wait is in `_settle`.
        self._pulse.before(int(step.lengths.sum()), self._watch.steps, now)
        with self._phases.launch:
            return self._executor.launch(step)

    def _sample(self, flight: Flight) -> None:
        """Queues the choice of its tokens, once; flights come here in the order of their steps."""
        if flight.step.id <= self._sampled:
            return
        self._sampled = flight.step.id
        with self._phases.schedule:
            masks = self._scheduler.masks(flight.step)
        with self._phases.launch:
            flight.sample(masks)

    def _settle(self, flight: Flight) -> None:
        watch, phases, tokens = self._watch, self._phases, int(flight.step.lengths.sum())
        self._pulse.before(tokens, watch.steps, self._clock())
        late = flight.done()
        with phases.wait:
            result = flight.wait()
        phases.inputs_s += result.inputs_s
        with phases.settle:
            landed = phases.settle.began
            next, deltas = self._scheduler.settle(flight.step, result)
            watch.steps += 1
            launched = watch.launched.pop(flight.step.id)
            if not flight.step.beside:  # those share the GPU, and tell nothing of their size
                took = landed - max(launched, watch.landed)
                watch.landed = landed
                watch.took(flight.step, took, late)
                self._pulse.after(tokens, took, watch.steps, landed)
            due = landed - watch.told >= STATS_EVERY
            self._desk.send(deltas, self._stats(landed) if due else None, next)

    def _tell_idle(self) -> None:
        now, watch = self._clock(), self._watch
        self._pulse.idle(watch.steps, now)
        # The last state before silence, or a dashboard would show work that has ended.
        if watch.told_steps != watch.steps:
            self._desk.send([], self._stats(now))

    def _stats(self, now: float) -> StepStats:
        watch, phases = self._watch, self._phases
        watch.told, watch.told_steps = now, watch.steps
        return replace(
            self._scheduler.stats(),
            time=now,
            generation=self._generation,
            schedule_s=phases.schedule.seconds,
            inputs_s=phases.inputs_s,
            launch_s=phases.launch.seconds,
            wait_s=phases.wait.seconds,
            settle_s=phases.settle.seconds,
        )


class _Watch:
    """Times of the loop in seconds of the monotonic clock.

    launched: of the flights in the air, by step. landed: of the last flight. told, told_steps: when
    stats were last sent, and after how many steps.
    """

    def __init__(self) -> None:
        self.launched: dict[int, float] = {}
        self._took: dict[int, float] = {}
        self.landed = 0.0
        self.steps = 0
        self.told = 0.0
        self.told_steps = 0

    def expected(self, rows: int) -> float:
        """Seconds of a step of so many decode rows; 0 when none of nearly as many has been."""
        near = (self._took.get(rows + more) for more in (0, 1, -1, 2, -2))
        return next((seconds for seconds in near if seconds is not None), 0.0)

    def took(self, step: Step, seconds: float, late: bool) -> None:
        """Rather too short than too long: it falls at once and rises slowly. late: the step had
        landed before anybody waited for it, so it took less, and what was held too long must not
        be what the next is held by."""
        if step.prefill_rows:
            return
        rows = len(step.slots)
        if late:
            if known := self.expected(rows):
                self._took[rows] = min(seconds, known) * 7 / 8
            return
        known = self._took.setdefault(rows, seconds)
        self._took[rows] = min(seconds, known + (seconds - known) / 8)
