"""A few sizes are captured before a rank serves, the others later; of the device, a stand-in."""

from __future__ import annotations

import gc
import logging
from typing import Any

import pytest
import torch

from appliance.runtime.engine.captures import ASKED, Captures, Later
from appliance.runtime.engine.executor import DeviceExecutor
from appliance.runtime.engine.inputs import Staging
from appliance.runtime.engine.lanes import Lanes
from appliance.runtime.engine.slots import Slots


class Device:
    """What is done on the current stream, in order; `fails`: (when, error) of a size."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        device = self
        self.done: list[tuple[str, int]] = []
        self.capturing: Graph | None = None
        self.pools: list[object] = []
        self.allocating: list[object] = []
        self.fails: dict[int, tuple[str, Exception]] = {}
        self.lost = False
        self.synchronized = 0

        class Graph:
            size = 0

            def capture_begin(self, pool: object, capture_error_mode: str) -> None:
                assert device.capturing is None and capture_error_mode == "thread_local"
                assert not gc.isenabled()
                device.capturing = self
                device.pools.append(pool)
                device.allocating.append(pool)

            def capture_end(self) -> None:
                if device.capturing is not self:
                    raise RuntimeError("no capture")
                device.capturing = None
                when, error = device.fails.get(self.size, ("", None))
                if when == "end" and error is not None:
                    raise error
                device.allocating.pop()

            def pool(self) -> object:
                return "pool"

            def replay(self) -> None:
                device.done.append(("replay", self.size))

        def end_allocate(device_index: int, pool: object) -> None:
            if not device.allocating:
                raise RuntimeError("not currently recording")
            assert device.allocating.pop() == pool

        def synchronize() -> None:
            device.synchronized += 1
            if device.lost:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "synchronize", synchronize)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocate, raising=False)

    def prepare(self, size: int) -> None:
        self.done.append(("prepare", size))

    def body(self, size: int) -> None:
        when, error = self.fails.get(size, ("", None))
        if self.capturing is None:
            self.done.append(("body", size))
            if when == "body" and error is not None:
                raise error
            return
        self.done.append(("capture", size))
        graph: Any = self.capturing
        graph.size = size
        if when == "capture" and error is not None:
            raise error

    def captured(self) -> list[int]:
        return [size for what, size in self.done if what == "capture"]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def captures_of(device: Device, *sizes: int, whole: bool = False) -> Captures:
    found = Captures(sizes, device.prepare, device.body)
    found.capture_first(lambda _: None, whole)
    return found


def all_of(later: Later, busy: bool = False) -> None:
    for _ in range(20):
        if (found := later.next(busy)) is None:
            return
        later.capture(*found)
    raise AssertionError("there is no end of them")


def test_the_largest_and_powers_of_two_come_first(device: Device) -> None:
    seen: list[float] = []
    found = Captures((1, 2, 3, 4, 6, 8, 12, 20), device.prepare, device.body)
    found.capture_first(seen.append)
    assert device.captured() == [20, 8, 4, 2, 1]
    assert seen == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert list(found.missing) == [3, 6, 12]
    assert [found.size_for(n) for n in (1, 3, 5, 9, 20)] == [1, 4, 8, 20, 20]
    assert found.size_for(21) is None


def test_or_all_of_them(device: Device) -> None:
    found = captures_of(device, 1, 3, 6, whole=True)
    assert device.captured() == [6, 3, 1] and not found.missing


def test_each_is_run_before_it_is_captured_and_all_share_their_memory(device: Device) -> None:
    found = captures_of(device, 3, 4)
    assert device.synchronized == 1
    all_of(Later([found], {}))
    each = [(what, size) for size in (4, 3) for what in ("prepare", "body", "capture")]
    assert device.done == each
    assert device.pools == [None, "pool"] and gc.isenabled()
    assert device.synchronized == 1, "steps in flight go on"


def test_the_others_come_one_after_the_other(device: Device) -> None:
    prefills, decodes = captures_of(device, 32, 96, 128), captures_of(device, 1, 2, 3, 5, 8)
    facts: dict[str, Any] = {}
    later = Later([prefills, decodes], facts)
    assert facts == {"passes": 8, "captured": 5}
    before = len(device.captured())
    all_of(later)
    assert device.captured()[before:] == [96, 3, 5]
    assert facts == {"passes": 8, "captured": 8}
    assert decodes.size_for(5) == 5 and later.next(busy=False) is None


def test_what_steps_asked_for_comes_before_the_others(device: Device) -> None:
    found = captures_of(device, 1, 2, 3, 4, 5, 6, 7, 8)
    later = Later([found], {})
    for _ in range(2):
        found.replay(8, 7)
    found.replay(8, 5)
    found.replay(4, 4)  # which it is
    assert dict(found.missing) == {3: 0, 5: 1, 6: 0, 7: 2}
    before = len(device.captured())
    all_of(later)
    assert device.captured()[before:] == [7, 5, 3, 6]


def test_steps_are_held_up_only_for_what_many_of_them_asked_for(device: Device) -> None:
    found = captures_of(device, 1, 2, 3, 4, 6, 8)
    later = Later([found], {})
    assert later.next(busy=True) is None
    for _ in range(ASKED - 1):
        found.replay(8, 6)
    assert later.next(busy=True) is None
    found.replay(8, 6)
    assert later.next(busy=True) == (found, 6)
    all_of(later, busy=True)
    assert list(found.missing) == [3]
    assert later.next(busy=False) == (found, 3)


@pytest.mark.parametrize("when", ["body", "capture", "end"])
def test_one_that_fails_is_the_last_and_those_there_serve_on(
    device: Device, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    found = captures_of(device, 1, 2, 3, 4, 6, 8)
    facts: dict[str, Any] = {}
    later = Later([found], facts)
    device.fails[3] = (when, torch.OutOfMemoryError("CUDA out of memory. Tried a lot."))
    with caplog.at_level(logging.WARNING):
        all_of(later)
    assert facts["captured"] == 4 and facts["passes"] == 6
    assert facts["capture_failed"] == "OutOfMemoryError: CUDA out of memory. Tried a lot."
    assert len([r for r in caplog.records if "no more passes" in r.message]) == 1
    assert device.capturing is None and not device.allocating and gc.isenabled()
    assert found.size_for(3) == 4
    found.replay(4, 3)
    assert device.done[-1] == ("replay", 4)
    assert later.next(busy=False) is None


def test_a_device_that_is_lost_ends_the_engine(device: Device) -> None:
    later = Later([captures_of(device, 1, 3, 4)], {})
    device.fails[3] = ("capture", RuntimeError("CUDA error: unspecified launch failure"))
    device.lost = True
    with pytest.raises(RuntimeError, match="illegal memory"):
        all_of(later)


def test_what_is_dropped_is_not_captured_again(device: Device) -> None:
    found = captures_of(device, 1, 2, 3, 4)
    later = Later([found], {})
    found.drop()
    assert later.next(busy=False) is None and found.size_for(1) is None


def test_where_nothing_is_captured_nothing_is_told() -> None:
    facts: dict[str, Any] = {}
    assert Later([], facts).next(busy=False) is None and not facts


def test_an_executor_has_them_as_chores(device: Device) -> None:
    none: Any = None
    cpu = torch.device("cpu")
    inference: list[bool] = []

    def body(size: int) -> None:
        inference.append(torch.is_inference_mode_enabled())
        device.body(size)

    found = Captures((1, 3, 6), device.prepare, body)
    executor = DeviceExecutor(
        none, none, Slots(2, 4, none, cpu), none, none, Lanes(Staging(cpu, 64)), none, True,
        Later([found], {}),
    )  # fmt: skip
    assert executor.chore(busy=True) is None
    while (chore := executor.chore(busy=False)) is not None:
        chore()
    assert device.captured() == [1, 3, 6] and all(inference)
