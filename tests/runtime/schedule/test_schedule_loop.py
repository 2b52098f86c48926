"""The loop with the oracle worker behind it: by a scripted door, and by the real one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from oracle import Oracle, OracleFlight, truth
from world import VOCAB

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.schedule import loop as loop_room
from appliance.runtime.schedule.loop import Loop
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.wire.channel import EngineDoor, EngineLink
from appliance.runtime.wire.codec import VERSION
from appliance.runtime.wire.delta import Admitted, Deltas, ToFrontend, TokenDelta, Welcome
from appliance.runtime.wire.request import (
    Abort,
    FlushCache,
    Hello,
    Sampling,
    ToEngine,
    TokenRequest,
    ids_to_bytes,
)
from appliance.runtime.wire.step import Step, StepResult

CONTEXT = 200
Incoming = list[tuple[int, ToEngine | None]]


def request(rid: int, length: int = 6, max_tokens: int = 5) -> TokenRequest:
    prompt = ids_to_bytes([(rid + i) % VOCAB for i in range(length)])
    return TokenRequest(rid=rid, prompt=prompt, sampling=Sampling(max_tokens=max_tokens, seed=rid))


class ScriptedDoor:
    """Gives one batch a turn; when all are given and the loop has nothing to do, `then` is called.

    It waits for less than that while a step runs, which on a busy machine may take long.
    """

    def __init__(self, script: list[Incoming], then: Callable[[], None] = lambda: None) -> None:
        self.script = list(script)
        self.then = then
        self.sent: list[tuple[int, ToFrontend]] = []

    def receive(self, timeout: float) -> Incoming:
        if self.script:
            return self.script.pop(0)
        if timeout >= loop_room.IDLE_WAIT:
            self.then()
        return []

    def send(self, peer: int, message: ToFrontend) -> None:
        self.sent.append((peer, message))

    def deltas(self, peer: int) -> list[TokenDelta]:
        sent = [m for p, m in self.sent if p == peer and isinstance(m, Deltas)]
        return [delta for message in sent for delta in message.each()]


def ids_of(deltas: list[TokenDelta], rid: int) -> list[int]:
    return [i for d in deltas if d.rid == rid for i in d.ids]


def serve(script: list[Incoming], depth: int = 1) -> tuple[ScriptedDoor, list[tuple[int, float]]]:
    door = ScriptedDoor(script)
    config = ScheduleConfig(page_size=4, chunk=16, depth=depth)
    scheduler = Scheduler(config, 64, CONTEXT, 8, VOCAB)
    beats: list[tuple[int, float]] = []
    loop = Loop(
        scheduler,
        Oracle(64, 4, 8, VOCAB, {rid: "" for rid in range(99)}),
        door,
        depth,
        generation=3,
        beat=lambda steps, limit: beats.append((steps, limit)),
    )
    door.then = loop.stop
    loop.run()
    scheduler.check()
    assert scheduler.idle
    return door, beats


@pytest.mark.parametrize("depth", [0, 1])
def test_each_peer_gets_its_own_and_all_of_it(depth: int) -> None:
    door, beats = serve([[(4, request(1)), (5, request(2, length=40))], [(4, request(3))]], depth)
    for peer, rid, length in ((4, 1, 6), (5, 2, 40), (4, 3, 6)):
        expected, finish = truth(request(rid, length), CONTEXT, VOCAB)
        assert ids_of(door.deltas(peer), rid) == expected
        ends = [d.finish for d in door.deltas(peer) if d.rid == rid and d.finish]
        assert ends == [finish]
    assert {d.rid for d in door.deltas(4)} == {1, 3}
    assert beats


def test_one_message_a_step_for_each_peer() -> None:
    door, _ = serve([[(4, request(rid)) for rid in range(1, 6)]])
    messages = [[*m.each()] for _, m in door.sent if isinstance(m, Deltas)]
    assert max(len(deltas) for deltas in messages) == 5
    assert all(len({d.rid for d in deltas}) == len(deltas) for deltas in messages)


def test_admission_is_told_once_to_the_right_peer() -> None:
    door, _ = serve([[(4, request(1)), (5, request(2))]])
    told = [(p, m.rids) for p, m in door.sent if isinstance(m, Admitted)]
    assert sorted(told) == [(4, (1,)), (5, (2,))]


def test_a_refusal_goes_home_without_a_step() -> None:
    door, _ = serve([[(4, request(1, length=300))]])
    (delta,) = door.deltas(4)
    assert delta.finish == "error" and "300 tokens" in delta.error


def test_an_aborted_request_gets_nothing_more() -> None:
    door, _ = serve([[(4, request(1, max_tokens=50)), (4, request(2))], [], [], [(4, Abort(1))]])
    assert len(ids_of(door.deltas(4), 1)) < 5
    assert not [d for d in door.deltas(4) if d.rid == 1 and d.finish]
    assert len(ids_of(door.deltas(4), 2)) == 5


def test_a_peer_that_has_gone_takes_its_requests_with_it() -> None:
    door, _ = serve([[(4, request(1, max_tokens=50)), (5, request(2))], [], [(4, None)]])
    last = max(i for i, (p, _) in enumerate(door.sent) if p == 5)
    assert all(p == 5 for p, _ in door.sent[-3:]) and last == len(door.sent) - 1
    assert len(ids_of(door.deltas(5), 2)) == 5


def test_a_request_sent_again_by_a_new_connection_belongs_to_it() -> None:
    door, _ = serve([[(4, request(1, max_tokens=9))], [], [(5, request(1)), (4, None)]])
    expected, _ = truth(request(1), CONTEXT, VOCAB)
    assert ids_of(door.deltas(5), 1) == expected


def test_a_peer_cannot_abort_what_has_ended() -> None:
    door, _ = serve([[(4, request(1))], *[[]] * 9, [(4, Abort(1)), (4, FlushCache())]])
    assert len(ids_of(door.deltas(4), 1)) == 5


def test_the_last_state_before_silence_is_told() -> None:
    door, _ = serve([[(4, Hello(VERSION, 0, 1)), (4, request(1))]])
    stats = [m.stats for _, m in door.sent if isinstance(m, Deltas) and m.stats is not None]
    assert stats[-1].running == 0 and stats[-1].generation == 3
    assert stats[-1].generated_tokens == 5 and stats[-1].steps >= 5


def test_what_the_executor_raises_ends_the_loop() -> None:
    class Broken:
        def chore(self, busy: bool) -> None:
            pass

        def launch(self, step: Step) -> object:
            raise RuntimeError("device lost")

    scheduler = Scheduler(ScheduleConfig(), 64, CONTEXT, 8, VOCAB)
    loop = Loop(scheduler, Broken(), ScriptedDoor([[(4, request(1))]]), 1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="device lost"):
        loop.run()


async def test_real_sockets_carry_it_all(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    welcome = Welcome(VERSION, 1, CONTEXT, 256, 4, 8, VOCAB, 1)
    door = EngineDoor(path, welcome)
    scheduler = Scheduler(ScheduleConfig(page_size=4), 64, CONTEXT, 8, VOCAB)
    loop = Loop(scheduler, Oracle(64, 4, 8, VOCAB, {1: "", 2: ""}), door, 1)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        got: list[TokenDelta] = []
        done = asyncio.Event()

        def on_message(message: ToFrontend) -> None:
            if isinstance(message, Deltas):
                got.extend(message.each())
            if sum(1 for d in got if d.finish) == 2:
                done.set()

        link = await EngineLink.connect(path, 0, on_message, lambda: None)
        link.send(request(1))
        link.send(request(2, length=30))
        await asyncio.wait_for(done.wait(), 20)
        link.close()
    finally:
        loop.stop()
        thread.join(20)
        door.close()
    for rid, length in ((1, 6), (2, 30)):
        assert ids_of(got, rid) == truth(request(rid, length), CONTEXT, VOCAB)[0]


class SlowOracle(Oracle):
    """Steps are done so many seconds after those before them, as on a GPU."""

    def __init__(self, seconds: float) -> None:
        super().__init__(64, 4, 8, VOCAB, {rid: "" for rid in range(99)})
        self.seconds = seconds
        self.free_at = 0.0
        self.ends: dict[int, float] = {}

    def launch(self, step: Step) -> OracleFlight:
        self.free_at = max(self.free_at, time.monotonic()) + self.seconds
        self.ends[step.id] = self.free_at
        return super().launch(step)

    def done(self, flight: OracleFlight) -> bool:
        return time.monotonic() >= self.ends[flight.step.id]

    def land(self, flight: OracleFlight) -> StepResult:
        time.sleep(max(0.0, self.ends[flight.step.id] - time.monotonic()))
        return super().land(flight)


class LateDoor(ScriptedDoor):
    """A second request comes once the loop waits for a while with a step in the air."""

    late: TokenRequest | None = None
    waited = 0

    def receive(self, timeout: float) -> Incoming:
        if 0 < timeout < 0.2:
            self.waited += 1
            if self.late is not None and self.waited > 3:
                late, self.late = self.late, None
                return [(4, late)]
            time.sleep(timeout)
            return []
        return super().receive(timeout)


def test_who_comes_while_a_step_runs_is_in_the_next() -> None:
    door = LateDoor([[(4, request(1, max_tokens=30))]])
    door.late = request(2)
    scheduler = Scheduler(ScheduleConfig(page_size=4, chunk=16), 64, CONTEXT, 8, VOCAB)
    oracle = SlowOracle(0.02)
    in_air: list[int] = []
    admit = scheduler.add

    def add(wire: TokenRequest, owner: int) -> None:
        in_air.append(scheduler.in_air)
        admit(wire, owner)

    scheduler.add = add  # type: ignore[method-assign]
    loop = Loop(scheduler, oracle, door, 1)
    door.then = loop.stop
    loop.run()
    assert door.waited > 3 and in_air == [0, 1]
    for rid, most in ((1, 30), (2, 5)):
        assert (
            ids_of(door.deltas(4), rid) == truth(request(rid, max_tokens=most), CONTEXT, VOCAB)[0]
        )


class ComputingOracle(SlowOracle):
    """Steps are done when they are launched, as on a CPU."""

    def launch(self, step: Step) -> OracleFlight:
        time.sleep(self.seconds)
        return super().launch(step)

    def done(self, flight: OracleFlight) -> bool:
        return True


@pytest.mark.parametrize("oracle,held", [(SlowOracle, True), (ComputingOracle, False)])
def test_only_what_runs_is_waited_for(oracle: type[SlowOracle], held: bool) -> None:
    """Where a launch computes, to put the next one off would be time lost."""
    door = LateDoor([[(4, request(1, max_tokens=12))]])
    scheduler = Scheduler(ScheduleConfig(page_size=4, chunk=16), 64, CONTEXT, 8, VOCAB)
    loop = Loop(scheduler, oracle(0.01), door, 1)
    door.then = loop.stop
    loop.run()
    assert (door.waited > 0) is held


class Clock:
    """Time that passes only where somebody waits or works."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class ClockedOracle(Oracle):
    """A step takes gpu[i] seconds from the end of the one before, the last of them for all that
    follow; to queue one takes `host` seconds."""

    def __init__(self, clock: Clock, host: float, gpu: list[float]) -> None:
        super().__init__(64, 4, 8, VOCAB, {rid: "" for rid in range(99)})
        self.clock, self.host, self.gpu = clock, host, gpu
        self.launched: list[float] = []
        self.ends: dict[int, float] = {}

    def launch(self, step: Step) -> OracleFlight:
        took = self.gpu[min(len(self.launched), len(self.gpu) - 1)]
        self.launched.append(self.clock.now)
        begun = max(self.clock.now, max(self.ends.values(), default=0.0))
        self.clock.now += self.host
        self.ends[step.id] = max(begun + took, self.clock.now)
        return super().launch(step)

    def done(self, flight: OracleFlight) -> bool:
        return self.clock.now >= self.ends[flight.step.id]

    def land(self, flight: OracleFlight) -> StepResult:
        self.clock.now = max(self.clock.now, self.ends[flight.step.id])
        return super().land(flight)


class ClockedDoor(ScriptedDoor):
    """Waits on the clock; nothing comes meanwhile."""

    clock: Clock

    def receive(self, timeout: float) -> Incoming:
        self.clock.now += timeout if timeout < 0.2 else 0.0
        return super().receive(timeout if timeout >= 0.2 else 0.0)


def steps_of(host: float, gpu: list[float]) -> list[float]:
    """Seconds from each launch to the next, of one row that decodes alone."""
    clock = Clock()
    door = ClockedDoor([[(4, request(1, max_tokens=100))]])
    door.clock = clock
    scheduler = Scheduler(ScheduleConfig(page_size=4, chunk=16), 64, CONTEXT, 8, VOCAB)
    oracle = ClockedOracle(clock, host, gpu)
    loop = Loop(scheduler, oracle, door, 1, clock=clock.monotonic)
    door.then = loop.stop
    loop.run()
    assert len(ids_of(door.deltas(4), 1)) == 100
    return [b - a for a, b in zip(oracle.launched, oracle.launched[1:], strict=False)]


@pytest.mark.parametrize("stall", [2, 30])
def test_one_slow_step_does_not_slow_those_after_it(stall: int) -> None:
    """The first of its size, of which nothing else is known, or one among many."""
    gpu = [0.005] * stall + [0.9] + [0.005]
    between = steps_of(0.001, gpu)
    assert max(between[:stall]) < 0.009 and max(between[stall + 3 :]) < 0.009


@pytest.mark.parametrize("host", [0.0, 0.001, 0.004, 0.015])
def test_a_host_slower_than_the_margin_is_not_held_back(host: float) -> None:
    """What the next step was held by must not be taken for what a step takes."""
    between = steps_of(host, [0.005])
    assert max(between) < max(host, 0.005) + host + 0.003
    assert sum(between[-20:]) / 20 < max(host, 0.005) + 0.001
