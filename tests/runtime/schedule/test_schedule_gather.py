"""Room gathers while requests wait for it; nothing is held back without need, or for long."""

from __future__ import annotations

from collections import deque

import numpy as np

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.schedule.gather import ENOUGH, MOST, TRY_AGAIN, WAITED_SHARE, Gather
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.wire.request import Sampling, TokenRequest, ids_to_bytes
from appliance.runtime.wire.step import Step, StepResult


def short(gather: Gather, turns: int = 0) -> Gather:
    """After a round that ended for want of room, `turns` ago."""
    gather.begin()
    gather.short = True
    for _ in range(turns):
        gather.next_turn()
    return gather


def test_with_room_every_turn_is_due() -> None:
    gather = Gather(8192)
    for _ in range(3):
        gather.next_turn()
        assert gather.due(waiting=9, since=gather.turn)
        gather.begin()


def test_held_back_until_enough_has_gone() -> None:
    gather = Gather(8192)
    for _ in range(1000):
        gather.next_turn()
    short(gather)
    gather.next_turn()
    gather.gone(ENOUGH - 1)
    assert not gather.due(waiting=9, since=0)
    gather.gone(1)
    assert gather.due(waiting=9, since=0)


def test_what_the_queue_needs_is_enough() -> None:
    gather = Gather(8192)
    for _ in range(1000):
        gather.next_turn()
    short(gather, 1)
    gather.gone(1)
    assert not gather.due(waiting=2, since=0)
    gather.gone(1)
    assert gather.due(waiting=2, since=0)


def test_a_small_chunk_is_enough() -> None:
    gather = Gather(64)
    for _ in range(1000):
        gather.next_turn()
    short(gather, 1).gone(64)
    assert gather.due(waiting=9, since=0)


def test_a_wait_grows_by_a_share_of_itself_and_by_so_many_turns_at_most() -> None:
    held_back = []
    for waited in range(0, 300):
        gather = Gather(8192)
        for _ in range(waited):
            gather.next_turn()
        short(gather).gone(1)
        while not gather.due(waiting=9, since=0):
            gather.next_turn()
        held_back.append(gather.turn - waited)
        assert (held_back[-1] - 1) * WAITED_SHARE <= gather.turn
    assert held_back[: WAITED_SHARE - 1] == [0] * (WAITED_SHARE - 1)
    assert held_back == sorted(held_back) and held_back[-1] == MOST


def test_without_a_row_gone_it_is_tried_now_and_then() -> None:
    gather = short(Gather(8192), TRY_AGAIN)
    assert not gather.due(waiting=1, since=0)
    gather.next_turn()
    assert gather.due(waiting=1, since=0)
    short(gather).anew()
    assert gather.due(waiting=1, since=0)


class Line:
    """The scheduler with one flight in the air; every row has its token at once."""

    def __init__(self, pages: int, rows: int) -> None:
        self.scheduler = Scheduler(ScheduleConfig(chunk=512), pages, 4096, rows, 64)
        self.flying: deque[Step] = deque()
        self.steps = 0
        self.came: dict[int, int] = {}
        self.admitted: dict[int, int] = {}
        self.prefills = 0

    def add(self, length: int, most: int) -> None:
        rid = len(self.came)
        self.came[rid] = self.steps
        ids = ids_to_bytes(np.full(length, 3 + rid % 60, dtype=np.int32))
        wire = TokenRequest(rid, ids, Sampling(max_tokens=most), arrival=float(rid))
        self.scheduler.add(wire)

    def turn(self) -> None:
        step = self.scheduler.next_step()
        self.steps += 1
        for rid in self.scheduler.admitted():
            self.admitted[rid] = self.steps
        if step is not None:
            self.prefills += step.prefill_rows > 0
            self.flying.append(step)
        while self.flying and (step is None or len(self.flying) > 1):
            done = self.flying.popleft()
            self.scheduler.settle(done, StepResult(np.where(done.samples, 5, -1)))

    def waits(self) -> list[int]:
        return [self.admitted[rid] - came for rid, came in self.came.items()]


def test_a_light_load_never_waits() -> None:
    line = Line(pages=400, rows=16)
    for i in range(60):
        line.add(64, 20)
        for _ in range(1 + i % 5):
            line.turn()
    while not line.scheduler.idle:
        line.turn()
    assert set(line.waits()) == {1}


def test_a_full_house_prefills_seldom_and_everyone_comes_in_turn() -> None:
    line = Line(pages=4000, rows=32)
    for i in range(400):
        line.add(16, 20 + i * 7 % 41)
    while not line.scheduler.idle:
        line.turn()
        line.scheduler.check()
    order = [line.admitted[rid] for rid in sorted(line.admitted)]
    assert len(order) == 400 and order == sorted(order), "first come, first served"
    assert line.prefills < 100, "a pass for every few rows that end"


def test_slots_stay_empty_for_a_bounded_time() -> None:
    line = Line(pages=4000, rows=4)
    for i in range(60):
        line.add(16, 30 + 11 * (i % 4))
    free = longest = 0
    while not line.scheduler.idle:
        line.turn()
        stats = line.scheduler.stats()
        free = free + 1 if stats.waiting and stats.running < 4 else 0
        longest = max(longest, free)
    assert longest <= MOST + 1
