"""The loop of an engine's rank 0: drain, next step, launch, settle; plain or overlapped."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from appliance.runtime.schedule.desk import Desk, Door
from appliance.runtime.schedule.pulse import Pulse
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.wire.delta import StepStats
from appliance.runtime.wire.step import Executor, Flight, Step

IDLE_WAIT = 0.25
"""Seconds an idle loop waits for a message before it gives a sign of life."""
COMPILE_WAIT = 0.005
"""The same while a grammar is being compiled, for its coming is not a message."""
STATS_EVERY = 0.1
"""Least seconds between two StepStats."""


class Loop:
    """depth: flights kept in the air beside the one being settled (ScheduleConfig.depth).

    beat(steps, limit_s) is called from the loop itself at least once a second, or says before a
    longer step how long the silence may be. warmup: (tokens, seconds) of a step timed before.
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
    ) -> None:
        self.stopping = False
        self._scheduler = scheduler
        self._executor = executor
        self._desk = Desk(door, scheduler)
        self._depth = depth
        self._generation = generation
        self._pulse = Pulse(beat, warmup)
        self._watch = _Watch()

    def run(self) -> None:
        """Serves until `stop`. What the executor raises ends it."""
        scheduler = self._scheduler
        flying: deque[Flight] = deque()
        while not self.stopping:
            self._drain(block=scheduler.idle and not flying)
            step = self._next_step()
            if step is not None:
                flying.append(self._launch(step))
            while flying:
                head = flying[0]
                head.sample(scheduler.masks(head.step))
                if step is not None and len(flying) <= self._depth:
                    break
                self._settle(flying.popleft())

    def stop(self) -> None:
        """The loop ends before its next step. May be called from a signal's function."""
        self.stopping = True

    def _drain(self, block: bool) -> None:
        if block:
            self._tell_idle()
        wait = COMPILE_WAIT if self._scheduler.compiling else IDLE_WAIT
        self._desk.drain(wait if block else 0.0)

    def _next_step(self) -> Step | None:
        started = time.monotonic()
        step = self._scheduler.next_step()
        self._watch.schedule += time.monotonic() - started
        notices, admitted = self._scheduler.notices(), self._scheduler.admitted()
        if admitted:
            self._desk.admitted(admitted)
        if notices:
            self._desk.send(notices)
        return step

    def _launch(self, step: Step) -> Flight:
        now = time.monotonic()
        self._watch.launched.append(now)
        # On a CPU the forward pass may run inside launch; on a GPU the wait is in `_settle`.
        self._pulse.before(int(step.lengths.sum()), self._watch.steps, now)
        return self._executor.launch(step)

    def _settle(self, flight: Flight) -> None:
        watch, tokens = self._watch, int(flight.step.lengths.sum())
        before = time.monotonic()
        self._pulse.before(tokens, watch.steps, before)
        result = flight.wait()
        landed = time.monotonic()
        deltas = self._scheduler.settle(flight.step, result)
        settled = time.monotonic()
        watch.steps += 1
        watch.wait += landed - before
        watch.schedule += settled - landed
        took = landed - max(watch.launched.popleft(), watch.landed)
        watch.landed = landed
        self._pulse.after(tokens, took, watch.steps, settled)
        due = settled - watch.told >= STATS_EVERY
        self._desk.send(deltas, self._stats(settled) if due else None)

    def _tell_idle(self) -> None:
        now, watch = time.monotonic(), self._watch
        self._pulse.idle(watch.steps, now)
        # The last state before silence, or a dashboard would show work that has ended.
        if watch.told_steps != watch.steps:
            self._desk.send([], self._stats(now))

    def _stats(self, now: float) -> StepStats:
        watch = self._watch
        watch.told, watch.told_steps = now, watch.steps
        return replace(
            self._scheduler.stats(),
            time=now,
            generation=self._generation,
            schedule_s=watch.schedule,
            wait_s=watch.wait,
        )


class _Watch:
    """Times of the loop in seconds of the monotonic clock.

    launched: of the flights in the air. landed: of the last flight. told, told_steps: when stats
    were last sent, and after how many steps. schedule, wait: sums for StepStats.
    """

    def __init__(self) -> None:
        self.launched: deque[float] = deque()
        self.landed = 0.0
        self.steps = 0
        self.told = 0.0
        self.told_steps = 0
        self.schedule = 0.0
        self.wait = 0.0
