"""What an executor puts off is done when nothing else is, and between steps now and then."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from oracle import Oracle, OracleFlight
from world import VOCAB

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.schedule.loop import CHORES_SHARE, IDLE_WAIT, Loop
from appliance.runtime.schedule.pulse import FIRST, SILENCE
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.wire.delta import Deltas, ToFrontend
from appliance.runtime.wire.request import Sampling, ToEngine, TokenRequest, ids_to_bytes
from appliance.runtime.wire.step import Step, StepResult

CHORE = 0.02
STEP = 0.005


def request(rid: int, tokens: int) -> TokenRequest:
    return TokenRequest(rid, ids_to_bytes([1, 2, 3]), Sampling(max_tokens=tokens, seed=rid))


class Worker(Oracle):
    """Steps and chores that take their time on a clock of its own. worth: of the chores those that
    are worth holding steps up for."""

    def __init__(self, chores: int, worth: int = 0) -> None:
        super().__init__(64, 4, 8, VOCAB, {rid: "" for rid in range(99)})
        self.now = self.free_at = 100.0
        self.ends: dict[int, float] = {}
        self.left, self.worth = chores, worth
        self.log: list[tuple[str, float]] = []

    def clock(self) -> float:
        return self.now

    def chore(self, busy: bool) -> Callable[[], None] | None:
        return self.work if (self.worth if busy else self.left) else None

    def work(self) -> None:
        self.log.append(("chore", self.now))
        self.now += CHORE
        self.left -= 1
        self.worth = max(0, self.worth - 1)

    def launch(self, step: Step) -> OracleFlight:
        self.log.append(("step", self.now))
        self.free_at = self.ends[step.id] = max(self.now, self.free_at) + STEP
        return super().launch(step)

    def done(self, flight: OracleFlight) -> bool:
        return self.now >= self.ends[flight.step.id]

    def land(self, flight: OracleFlight) -> StepResult:
        self.now = max(self.now, self.ends[flight.step.id])
        return super().land(flight)

    def times(self, what: str) -> list[float]:
        return [at for kind, at in self.log if kind == what]


class Door:
    """Requests come at their time. The loop is stopped when it waits and none is to come."""

    def __init__(self, worker: Worker, coming: list[tuple[float, TokenRequest]]) -> None:
        self.worker, self.coming = worker, coming
        self.looks: list[float] = []
        self.ended: list[int] = []
        self.stop: Callable[[], None] = lambda: None

    def receive(self, timeout: float) -> list[tuple[int, ToEngine | None]]:
        self.looks.append(self.worker.now)
        if timeout >= IDLE_WAIT:
            if not self.coming:
                self.stop()
            else:
                self.worker.now = max(self.worker.now, self.coming[0][0])
        else:
            self.worker.now += timeout
        found = [r for at, r in self.coming if at <= self.worker.now]
        self.coming = [c for c in self.coming if c[0] > self.worker.now]
        return [(4, r) for r in found]

    def send(self, peer: int, message: ToFrontend) -> None:
        if isinstance(message, Deltas):
            self.ended += [d.rid for d in message.items if d.finish]


def serve(
    worker: Worker, coming: list[tuple[float, TokenRequest]], depth: int = 1
) -> tuple[Door, list[float]]:
    """The door, and the silences that were asked for."""
    door, limits = Door(worker, coming), []
    scheduler = Scheduler(ScheduleConfig(page_size=4, chunk=16), 64, 200, 8, VOCAB)
    loop = Loop(
        scheduler, worker, door, depth, beat=lambda _, limit: limits.append(limit),
        warmup=(64, 0.1), clock=worker.clock,
    )  # fmt: skip
    door.stop = loop.stop
    loop.run()
    return door, limits


def test_an_idle_loop_does_all_and_looks_at_its_door_between_two() -> None:
    worker = Worker(5)
    door, _ = serve(worker, [])
    begun = worker.times("chore")
    assert len(begun) == 5 and worker.left == 0
    assert all(at + CHORE in door.looks for at in begun)


@pytest.mark.parametrize("after", [0.001, 0.019, 0.021, 0.05])
def test_a_request_waits_for_one_chore_at_most(after: float) -> None:
    worker = Worker(20)
    came = worker.now + after
    door, _ = serve(worker, [(came, request(1, 3))])
    assert worker.times("step")[0] - came <= CHORE
    assert door.ended == [1] and worker.left == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_steps_are_held_up_only_for_what_is_worth_it(depth: int) -> None:
    worker = Worker(20, worth=0)
    serve(worker, [(0.0, request(1, 60))], depth)
    begun, steps = worker.times("chore"), worker.times("step")
    assert not [at for at in begun if steps[0] < at < steps[-1]] and worker.left == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_between_steps_chores_take_a_share_of_the_time(depth: int) -> None:
    worker = Worker(20, worth=20)
    door, _ = serve(worker, [(0.0, request(1, 190))], depth)
    steps = worker.times("step")
    between = [at for at in worker.times("chore") if steps[0] < at < steps[-1]]
    assert len(between) >= 3 and door.ended == [1]
    gaps = [b - a for a, b in pairwise(between)]
    assert min(gaps) >= CHORES_SHARE * CHORE - 1e-9
    assert max(gaps) < CHORES_SHARE * CHORE + 3 * STEP


def test_a_chore_is_not_taken_for_a_loop_that_hangs() -> None:
    _, limits = serve(Worker(3), [])
    assert limits.count(FIRST) == 3
    at = [i for i, limit in enumerate(limits) if limit == FIRST]
    assert all(limits[i + 1] == SILENCE for i in at), "and afterwards silence is short again"


def test_none_is_done_while_a_prefill_runs_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind all that was launched, it would hold decode steps up until that prefill ends."""
    worker = Worker(9, worth=9)
    seen: list[bool] = []
    loop = Loop(
        Scheduler(ScheduleConfig(page_size=4, chunk=16), 64, 200, 8, VOCAB), worker,
        Door(worker, []), 1, clock=worker.clock,
    )  # fmt: skip
    monkeypatch.setattr(loop, "_chore", lambda busy: seen.append(busy))
    scheduler = loop._scheduler
    scheduler.add(request(1, 9))
    loop.turn()
    assert seen == [True]
    flight = OracleFlight(worker, loop._flying[0].step, {})
    monkeypatch.setattr(OracleFlight, "done", lambda self: False)
    loop._beside.append(flight)
    loop.turn()
    assert seen == [True]


def test_what_a_chore_raises_ends_the_loop() -> None:
    worker = Worker(1)

    def lost() -> None:
        raise RuntimeError("device lost")

    worker.work = lost  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="device lost"):
        serve(worker, [])
