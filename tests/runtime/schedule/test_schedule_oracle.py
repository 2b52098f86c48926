"""The scheduler under everything at once, on the oracle worker; and proof that this can fail."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from long_run import run
from world import VOCAB, Shape, World, random_shape

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.schedule.admit import Admission
from appliance.runtime.schedule.cache.cache import Cache, Lease
from appliance.runtime.schedule.cache.radix import Int32s, Node, Radix
from appliance.runtime.schedule.cohort import Cohort
from appliance.runtime.schedule.desk import Desk
from appliance.runtime.schedule.loop import Loop
from appliance.runtime.schedule.request import Request
from appliance.runtime.schedule.running import Running
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.schedule.settle import Settle
from appliance.runtime.wire.request import Sampling

POLICIES = ("fcfs", "lpm", "dfs-weight", "lof", "random")


@pytest.mark.parametrize("pages", [6, 16, 64])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_way_gives_the_same_tokens(policy: str, pages: int) -> None:
    ways = product([0, 1], [0, 8], [False, True], [False, True], [0, 3])
    for depth, chunk, mixed, prefix, retract in ways:
        config = ScheduleConfig(
            policy=policy,  # type: ignore[arg-type]
            page_size=4,
            chunk=chunk,
            mixed_chunk=mixed,
            prefix_cache=prefix,
            depth=depth,
            retract_every=retract,
            conservativeness=0.2,
        )
        world = World(Shape(config, pages, 23, 4), seed=pages)
        rng = random.Random(pages)
        for i in range(8):
            length = rng.randrange(1, 16)
            stops = tuple(rng.sample(range(VOCAB), 3))
            sampling = Sampling(max_tokens=rng.randrange(1, 7), seed=i, stop_ids=stops)
            world.submit([*world.families[i % 2][:length], i], sampling)
            world.iterate()
            world.check()
        world.drain()
        assert world.finished == 8 and world.errors == 0


def test_an_engine_death_at_any_turn_loses_nothing() -> None:
    for depth, turn in product([0, 1], range(12)):
        world = World(Shape(ScheduleConfig(page_size=4, chunk=8, depth=depth), 32, 60, 4))
        for i in range(6):
            world.submit(world.families[0][: 5 + 3 * i], Sampling(max_tokens=7, seed=i))
        for _ in range(turn):
            world.iterate()
        world.die()
        world.drain()
        assert world.finished == 6 and world.errors == 0


def test_a_request_in_two_deaths_is_not_tried_again() -> None:
    world = World(Shape(ScheduleConfig(page_size=4), 32, 60, 4))
    rid = world.submit([1, 2, 3], Sampling(max_tokens=20))
    world.die()
    world.iterate()
    world.die()
    world.drain()
    assert world.errors == 1 and world.done[rid].crashes == 2


def test_a_short_random_run_finds_nothing() -> None:
    report = run(steps=12_000, seed=5)
    assert report["violations"] == []
    assert report["steps"] == 12_000


class Machine(RuleBasedStateMachine):
    """World driven by hypothesis, so that what it finds is shrunk."""

    @initialize(seed=st.integers(0, 1 << 30))
    def begin(self, seed: int) -> None:
        self.world = World(random_shape(random.Random(seed)), seed)

    @rule(
        family=st.integers(0, 2),
        length=st.integers(0, 40),
        tail=st.lists(st.integers(0, 3), max_size=3),
        most=st.integers(0, 20),
        stops=st.sets(st.integers(0, VOCAB - 1), max_size=10),
        prompt_logprobs=st.sampled_from([-1, -1, -1, 0]),
        key=st.sampled_from(["", "", "k"]),
        priority=st.integers(0, 1),
    )
    def submit(
        self,
        family: int,
        length: int,
        tail: list[int],
        most: int,
        stops: set[int],
        prompt_logprobs: int,
        key: str,
        priority: int,
    ) -> None:
        sampling = Sampling(
            max_tokens=most, stop_ids=tuple(stops), prompt_logprobs=prompt_logprobs, seed=length
        )
        self.world.submit(self.world.families[family][:length] + tail, sampling, key, priority)

    @rule(turns=st.integers(1, 6))
    def iterate(self, turns: int) -> None:
        for _ in range(turns):
            self.world.iterate()
            self.world.check()

    @precondition(lambda self: self.world.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.world.abort(data.draw(st.sampled_from(sorted(self.world.live))))

    @precondition(lambda self: self.world.live)
    @rule(data=st.data())
    def poison(self, data: st.DataObject) -> None:
        self.world.poison(data.draw(st.sampled_from(sorted(self.world.live))))

    @rule()
    def flush(self) -> None:
        self.world.flush()

    @rule()
    def reconnect(self) -> None:
        self.world.reconnect()

    @rule()
    def die(self) -> None:
        self.world.die()

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.drain()


Machine.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestMachine = Machine.TestCase


# Each of these is one planted bug; the random run must see it.


def _release_forgets_a_page(patch: pytest.MonkeyPatch) -> None:
    release = Cache.release
    calls = [0]

    def forgetful(self: Cache, lease: Lease, forget: bool = False) -> None:
        calls[0] += 1
        if calls[0] % 50 == 0 and len(lease.pages) > lease.shared:
            lease.pages.pop()
        release(self, lease, forget)

    patch.setattr(Cache, "release", forgetful)


def _pages_come_free_under_a_flight(patch: pytest.MonkeyPatch) -> None:
    end = Scheduler._end

    def early(self: Scheduler, request: Request) -> None:
        held = int(self.running.flights[request.slot])
        slot = request.slot
        self.running.flights[slot] = 0
        end(self, request)
        self.running.flights[slot] = held

    patch.setattr(Scheduler, "_end", early)


def _matched_nodes_are_not_locked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Radix, "lock", lambda self, node: None)
    patch.setattr(Radix, "unlock", lambda self, node: None)


def _the_extra_token_is_emitted(patch: pytest.MonkeyPatch) -> None:
    plain = Settle._plain

    def emit_twice(self: Settle, step: object, *rest: object) -> object:
        rows = plain(self, step, *rest)  # type: ignore[arg-type]
        for row in np.flatnonzero(~rows).tolist():
            request = self._running.requests[int(step.slots[row])]  # type: ignore[attr-defined]
            if request is not None and request.state.name == "DONE":
                request.state = type(request.state).DECODE
        return rows

    patch.setattr(Settle, "_plain", emit_twice)


def _namespaces_are_one(patch: pytest.MonkeyPatch) -> None:
    match = Radix.match
    patch.setattr(Radix, "match", lambda self, namespace, tokens: match(self, "", tokens))


def _rows_run_past_their_end(patch: pytest.MonkeyPatch) -> None:
    length = Running.last_length
    patch.setattr(Running, "last_length", lambda self, request: length(self, request) + 1)


def _moved_pages_are_not_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Running, "take_moved", lambda self, slots=None: [])


def _freed_slots_are_not_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Running, "take_freed", lambda self: [])


def _retraction_loses_a_token(patch: pytest.MonkeyPatch) -> None:
    wait_again = Request.wait_again

    def lossy(self: Request) -> None:
        if self.output:
            self.output.pop()
        wait_again(self)

    patch.setattr(Request, "wait_again", lossy)


def _a_page_too_few(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cohort, "crossing", lambda self: np.flatnonzero(self.starts > self.capacity))


def _a_split_forgets_locks(patch: pytest.MonkeyPatch) -> None:
    split = Radix._split

    def unlocked(self: Radix, node: Node, at: int) -> Node:
        upper = split(self, node, at)
        upper.locks = 0
        return upper

    patch.setattr(Radix, "_split", unlocked)


def _half_a_page_is_committed(patch: pytest.MonkeyPatch) -> None:
    commit = Cache.commit

    def early(self: Cache, lease: Lease, tokens: Int32s) -> tuple[int, Int32s]:
        more = np.zeros(len(lease.pages) * self.page_size - len(tokens), dtype=np.int32)
        return commit(self, lease, np.concatenate([tokens, more]) if len(more) else tokens)

    patch.setattr(Cache, "commit", early)


def _admission_starves(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Admission, "_fits", lambda self, lease, length, rest, common, outlook: False)


def _steps_beside_settle_late(patch: pytest.MonkeyPatch) -> None:
    """After a prefill that may go on from them."""
    patch.setattr(Loop, "_settle_head", lambda self: self._settle(self._flying.popleft()))


def _steps_beside_settle_early(patch: pytest.MonkeyPatch) -> None:
    """Before a prefill that they may go on from."""
    patch.setattr(Loop, "_settle_beside", lambda self: self._settle(self._beside.popleft()))


def _a_refusal_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Loop, "_hold", lambda self: self._scheduler.notices() and None)


def _a_lost_connection_takes_what_came_again(patch: pytest.MonkeyPatch) -> None:
    def gone(self: Desk, peer: int) -> None:
        for rid in list(self._owners):
            self._abort(rid)

    patch.setattr(Desk, "_gone", gone)


def _a_lost_connection_is_served_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Desk, "_gone", lambda self, peer: None)


MUTANTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    _release_forgets_a_page,
    _pages_come_free_under_a_flight,
    _matched_nodes_are_not_locked,
    _the_extra_token_is_emitted,
    _namespaces_are_one,
    _rows_run_past_their_end,
    _moved_pages_are_not_told,
    _freed_slots_are_not_told,
    _retraction_loses_a_token,
    _a_page_too_few,
    _a_split_forgets_locks,
    _half_a_page_is_committed,
    _admission_starves,
    _steps_beside_settle_late,
    _steps_beside_settle_early,
    _a_refusal_is_lost,
    _a_lost_connection_takes_what_came_again,
    _a_lost_connection_is_served_on,
]


@pytest.mark.parametrize("plant", MUTANTS, ids=lambda plant: plant.__name__.strip("_"))
def test_a_planted_bug_is_seen(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    report = run(steps=20_000, seed=11)
    assert report["violations"], "20,000 steps with a planted bug, and nothing was seen"
