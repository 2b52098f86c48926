"""Which steps wait for which, on streams that only keep account of it."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import cast

import numpy as np
import pytest
import torch

from appliance.kernels.multiprocessors import Room
from appliance.runtime.engine.inputs import Staging
from appliance.runtime.engine.lanes import Lanes
from appliance.runtime.wire.step import SharedRuns, Step

CPU = torch.device("cpu")


class Device:
    """Streams of a GPU, the current one, and what each step on them has waited for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        device = self
        self.waited: dict[int, set[int]] = {}

        class Stream:
            def __init__(self) -> None:
                self.past: set[int] = set()

            def wait_stream(self, other: Stream) -> None:
                self.past |= other.past

            def wait_event(self, event: Event) -> None:
                self.past |= event.past

        class Event:
            past: frozenset[int]

            def record(self) -> None:
                self.past = frozenset(device.current.past)

            def query(self) -> bool:
                return False

        class Within:
            def __init__(self, stream: Stream) -> None:
                self.stream, self.before = stream, device.current

            def __enter__(self) -> None:
                device.current = self.stream

            def __exit__(self, *error: object) -> None:
                device.current = self.before

        self.current = Stream()
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "stream", Within)
        patch.setattr(torch.cuda, "current_stream", lambda: device.current)

    def run(self, step: int) -> None:
        """Something of the step is queued on the current stream."""
        self.waited.setdefault(step, set()).update(self.current.past)
        self.current.past.add(step)


class RoomTaken:
    def __init__(self) -> None:
        self.times = 0

    def left(self) -> nullcontext[None]:
        self.times += 1
        return nullcontext()


def step(
    id: int, prefill: int = 0, decode: int = 0, shared: bool = False, beside: bool = False
) -> Step:
    rows, none = prefill + decode, np.zeros(0, dtype=np.int32)
    each = np.ones(rows, dtype=np.int32)
    two = np.full(1, 2, dtype=np.int32)
    return Step(
        id=id, slots=np.arange(rows, dtype=np.int32), starts=each, lengths=each,
        prefill_rows=prefill, ids=each[:prefill], samples=each.astype(bool), outputs=each,
        page_slots=none, page_columns=none, page_ids=none, new=[], freed=[],
        shared=SharedRuns(two, two) if shared else None, beside=beside,
    )  # fmt: skip


def kinds(id: int) -> list[tuple[Step, bool]]:
    """Every kind of step, and whether its prefill is captured."""
    return [
        (step(id, decode=3), False),
        (step(id, decode=3, shared=True), False),
        (step(id, prefill=2), False),
        (step(id, prefill=2), True),
        (step(id, prefill=1, decode=2), False),
        (step(id, prefill=1, decode=2), True),
        (step(id, prefill=2, beside=True), False),
    ]


def decodes_only(a_step: Step) -> bool:
    return a_step.prefill_rows == 0 and a_step.shared is None


@pytest.mark.parametrize("seed", range(20))
def test_decode_steps_alone_go_past_a_prefill_beside_them(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    device, rng, room = Device(monkeypatch), random.Random(seed), RoomTaken()
    lanes = Lanes(Staging(CPU, 8), Staging(CPU, 8), cast(Room, room))
    assert lanes.apart
    steps: list[Step] = []
    for id in range(1, 60):
        taken, captured = rng.choice(kinds(id))
        with lanes.run(taken, captured) as lane:
            device.run(id)
        with lane.current():  # the choice of its tokens
            device.run(id)
            lanes.queued(taken, lane)
        steps.append(taken)
    for at, later in enumerate(steps):
        for earlier in steps[:at]:
            waited = earlier.id in device.waited[later.id]
            if not (earlier.beside and decodes_only(later)):
                assert waited, f"step {later.id} does not wait for {earlier.id}"
    assert room.times == sum(s.beside for s in steps)


def test_one_lane_is_the_stream_it_was_made_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps may be run by another thread, whose current stream is another one."""
    device = Device(monkeypatch)
    staging = Staging(CPU, 8)
    staging.cuda = True
    made_on = device.current
    lanes = Lanes(staging)
    device.current = torch.cuda.Stream()
    assert not lanes.apart
    for taken in (step(1, prefill=1, beside=True), step(2, decode=2)):
        with lanes.run(taken, captured=False) as lane:
            assert device.current is made_on
            device.run(taken.id)
        with lane.current():
            lanes.queued(taken, lane)
    assert device.waited == {1: set(), 2: {1}} and device.current is not made_on
    assert not lanes.crowded


def test_a_decode_step_right_after_a_prefill_beside_it_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(monkeypatch)
    lanes = Lanes(Staging(CPU, 8), Staging(CPU, 8), cast(Room, RoomTaken()))
    assert not lanes.crowded
    for taken in (step(1, decode=2), step(2, prefill=1, beside=True), step(3, decode=2)):
        with lanes.run(taken, captured=False) as lane:
            device.run(taken.id)
        with lane.current():
            lanes.queued(taken, lane)
    assert device.waited == {1: set(), 2: {1}, 3: {1}} and lanes.crowded


@pytest.mark.parametrize("seed", range(10))
def test_what_is_no_step_waits_for_all_before_it_and_all_later_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    device, rng = Device(monkeypatch), random.Random(seed)
    lanes = Lanes(Staging(CPU, 8), Staging(CPU, 8), cast(Room, RoomTaken()))
    chores, stream = set(range(5, 60, 5)), device.current
    for id in range(1, 60):
        if id in chores:
            with lanes.behind_all():
                assert device.current is lanes.main.stream
                device.run(id)
            assert device.current is stream
            continue
        taken, captured = rng.choice(kinds(id))
        with lanes.run(taken, captured) as lane:
            device.run(id)
        with lane.current():
            lanes.queued(taken, lane)
    for chore in chores:
        assert device.waited[chore] == set(range(1, chore))
        assert all(chore in device.waited[later] for later in range(chore + 1, 60))
