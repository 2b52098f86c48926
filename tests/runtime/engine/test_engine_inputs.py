"""The tables of a captured decode pass, as the host makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from appliance.runtime.engine.inputs import Staging, Stopwatch, _Pinned, decode_tables
from appliance.runtime.wire.step import Step


def decoding(slots: list[int], starts: list[int]) -> Step:
    none = np.zeros(0, dtype=np.int32)
    rows = len(slots)
    return Step(
        id=1, slots=np.array(slots, dtype=np.int32), starts=np.array(starts, dtype=np.int32),
        lengths=np.ones(rows, np.int32), prefill_rows=0, ids=none, samples=np.ones(rows, np.bool_),
        outputs=np.zeros(rows, np.int32), page_slots=none, page_columns=none, page_ids=none,
        new=[], freed=[],
    )  # fmt: skip


def test_rows_are_filled_up_with_the_spare_slot() -> None:
    table, indptr = decode_tables(decoding([3, 0, 7], [0, 15, 16]), 5, spare=9, page_size=16)
    assert table.dtype == indptr.dtype == np.int32
    assert table[:5].tolist() == [3, 0, 7, 9, 9]
    assert table[5:].tolist() == [0, 15, 16, 0, 0]
    # positions 0 and 15 lie on the first page, 16 on the second; spare rows read one page each
    assert indptr.tolist() == [0, 1, 2, 4, 5, 6]


class Event:
    """Says when it was waited for and recorded."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def synchronize(self) -> None:
        self.said.append("waited")

    def record(self) -> None:
        self.said.append("left")


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Staging:
    """The way to a GPU, with ordinary memory at both ends. Copies of up to 8 words."""
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    staging = Staging(torch.device("cpu"), 8)
    staging.cuda = True
    staging._pinned = [_Pinned(8) for _ in range(staging._BUFFERS)]
    return staging


def said(staging: Staging) -> list[list[str]]:
    events: list[Any] = [buffer.left for buffer in staging._pinned]
    return [event.said for event in events if event.said]


def test_what_is_sent_arrives_in_its_own_kind_and_order(pinned: Staging) -> None:
    ints, floats = np.array([3, -4], dtype=np.int32), np.array([0.5, -2.0, 8.0], dtype=np.float32)
    one, two, three = pinned.send([ints, floats, ints + 1])
    assert (
        one.tolist() == [3, -4] and two.tolist() == [0.5, -2.0, 8.0] and three.tolist() == [4, -3]
    )
    assert [t.tolist() for t in pinned.send([floats])] == [floats.tolist()]
    assert [t.tolist() for t in pinned.send([ints])] == [[3, -4]]
    assert said(pinned) == [["waited", "left"]] * 3, "each in a buffer of its own"


def test_what_is_filled_goes_from_one_buffer(pinned: Staging) -> None:
    table, other = torch.zeros(5, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    first, second = np.array([1, 2], dtype=np.int32), np.array([7, 8, 9], dtype=np.int32)
    pinned.fill((first, table[:2]), (second, other))
    assert table.tolist() == [1, 2, 0, 0, 0] and other.tolist() == [7, 8, 9]
    assert said(pinned) == [["waited", "left"]]
    for _ in range(pinned._BUFFERS):  # its turn comes again once what left it has arrived
        pinned.fill((second, other))
    assert said(pinned)[0] == ["waited", "left", "waited", "left"]


def test_what_no_buffer_holds_gets_one_of_its_own(pinned: Staging) -> None:
    many = np.arange(9, dtype=np.int32)
    target = torch.zeros(9, dtype=torch.int32)
    pinned.fill((many, target))
    assert target.tolist() == many.tolist() and pinned.send([many])[0].tolist() == many.tolist()
    assert said(pinned) == []


def test_a_stopwatch_adds_up_until_it_is_read() -> None:
    spans: list[str] = []

    class Span:
        def __init__(self, name: str) -> None:
            spans.append(name)

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None:
            spans.append("end")

    watch = Stopwatch(Span)
    for _ in range(2):
        with watch:
            pass
    assert watch.take() > 0 and watch.take() == 0.0
    assert spans == ["inputs", "end"] * 2
