"""The tables of a captured decode pass, as the host makes them."""

from __future__ import annotations

import numpy as np

from appliance.runtime.engine.inputs import Stopwatch, decode_tables
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
