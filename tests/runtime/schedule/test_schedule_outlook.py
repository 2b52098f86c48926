"""The worst time to come against a walk through all of it, and what admission promises by it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import VOCAB, Shape, World

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.schedule import running
from appliance.runtime.schedule.outlook import Outlook
from appliance.runtime.wire.request import Sampling

Row = tuple[int, int, int]
"""(tokens, rest, pages in common)."""

PAGES = st.sampled_from([1, 2, 4, 16])
ROWS = st.lists(st.tuples(st.integers(1, 70), st.integers(0, 40), st.integers(0, 3)), max_size=12)


def outlook(page: int, rows: list[Row], base: int) -> Outlook:
    tokens, rest, common = np.array(rows, dtype=np.int32).reshape(-1, 3).T
    return Outlook(page, tokens, rest, common, base)


def lived(page: int, rows: list[Row], base: int, last: list[Row] | None = None) -> int:
    """Every step of the future, one after the other. last: rows that stay when they are full."""
    worst, last = 0, last or []
    for k in range(max((rest for _, rest, _ in [*rows, *last]), default=0) + 1):
        pages = [-(-(tokens + k) // page) - common for tokens, rest, common in rows if rest >= k]
        full = [-(-(tokens + min(k, rest)) // page) - common for tokens, rest, common in last]
        worst = max(worst, sum(pages) + sum(full))
    return base + worst


def within(page: int, rows: list[Row]) -> list[Row]:
    return [(tokens, rest, min(common, tokens // page)) for tokens, rest, common in rows]


@given(PAGES, ROWS, st.integers(0, 9))
def test_the_peak_is_that_of_the_future_lived_step_by_step(
    page: int, rows: list[Row], base: int
) -> None:
    rows = [(tokens, rest, min(common, tokens // page)) for tokens, rest, common in rows]
    assert outlook(page, rows, base).peak == lived(page, rows, base)


@given(PAGES, ROWS, st.integers(0, 12))
def test_rows_added_one_by_one_come_to_the_same(page: int, rows: list[Row], first: int) -> None:
    rows = [(tokens, rest, min(common, tokens // page)) for tokens, rest, common in rows]
    grown = outlook(page, rows[:first], 5)
    unasked = outlook(page, rows[:first], 5)
    for at, row in enumerate(rows[first:], max(0, min(first, len(rows))) + 1):
        unasked.add(*row)
        before = grown.peak
        told = grown.peak_with(*row)
        assert grown.peak == before, "asking changes nothing"
        grown.add(*row)
        assert grown.peak == told == lived(page, rows[:at], 5)
    assert unasked.peak == grown.peak


@given(PAGES, ROWS, st.tuples(st.integers(1, 70), st.integers(0, 40)), st.integers(0, 60))
def test_what_fits_is_what_the_peak_says(
    page: int, rows: list[Row], row: tuple[int, int], total: int
) -> None:
    rows = [(tokens, rest, min(common, tokens // page)) for tokens, rest, common in rows]
    tokens, rest = row
    fits = outlook(page, rows, 3).fits(tokens, rest, 0, total)
    assert fits == (lived(page, [*rows, (tokens, rest, 0)], 3) <= total)


@given(
    page=PAGES,
    first=ROWS,
    then=st.lists(st.tuples(ROWS.map(lambda r: r[:1]), st.booleans()), max_size=8),
    asked=st.booleans(),
)
def test_rows_that_end_last_stand_full_until_all_others_have_ended(
    page: int, first: list[Row], then: list[tuple[list[Row], bool]], asked: bool
) -> None:
    rows, last = within(page, first), list[Row]()
    grown = outlook(page, rows, 5)
    for one, ends_last in then:
        for row in within(page, one):
            told = grown.peak_with(*row, ends_last) if asked else None
            grown.add(*row, ends_last)
            (last if ends_last else rows).append(row)
            want = lived(page, rows, 5, last)
            assert told in (None, want)
            if asked:
                assert grown.peak == want
    assert grown.peak == lived(page, rows, 5, last)


@given(PAGES, ROWS, ROWS, st.lists(st.integers(0, 60), min_size=12, max_size=12))
def test_however_late_a_row_begins_to_grow_its_pages_were_reckoned_with(
    page: int, rows: list[Row], beside: list[Row], late: list[int]
) -> None:
    rows, beside = within(page, rows), within(page, beside)
    reckoned = outlook(page, rows, 0)
    for row in beside:
        reckoned.add(*row, last=True)
    for k in range(120):
        held = sum(-(-(t + k) // page) - common for t, rest, common in rows if rest >= k)
        for (tokens, rest, common), delay in zip(beside, late, strict=False):
            if rest + delay >= k:
                held += -(-(tokens + max(0, k - delay)) // page) - common
        assert held <= reckoned.peak


def test_rows_that_end_apart_are_not_added_up() -> None:
    rows = [(100, rest, 0) for rest in range(0, 1000, 100)]
    assert outlook(1, rows, 0).peak < sum(tokens + rest for tokens, rest, _ in rows) * 2 // 3


def test_more_rows_than_were_there_at_first_have_room() -> None:
    grown = outlook(4, [], 0)
    for rest in range(300):
        grown.add(8, rest % 7, 0)
    assert grown.peak == lived(4, [(8, rest % 7, 0) for rest in range(300)], 0)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    page=st.sampled_from([1, 4, 16]),
    chunk=st.sampled_from([0, 8, 64]),
    depth=st.integers(0, 1),
    mixed=st.booleans(),
    prefix=st.booleans(),
    beside=st.integers(0, 3),
    late=st.booleans(),
    short=st.sampled_from([1, 8, 40, 96]),
)
def test_rows_that_run_to_their_ends_are_never_retracted(
    seed: int,
    page: int,
    chunk: int,
    depth: int,
    mixed: bool,
    prefix: bool,
    beside: int,
    late: bool,
    short: int,
) -> None:
    """However long prefills beside their steps may take, and whether or not short ones are in
    these."""
    world = full_world(seed, page, chunk, depth, mixed, prefix, beside, late, short)
    world.drain()
    assert world.scheduler.stats().retractions == 0
    assert world.errors == 0 and world.finished == 24


def full_world(
    seed: int,
    page: int,
    chunk: int,
    depth: int,
    mixed: bool,
    prefix: bool,
    beside: int = 0,
    late: bool = False,
    short: int = 1,
) -> World:
    """Requests without stop ids, which a pool of 96 tokens holds few of at a time. beside: rows
    beside whose steps prompts are computed; late: such steps end as late as they can; short: tokens
    of prefills that decode rows join."""
    config = ScheduleConfig(
        page_size=page, chunk=chunk, depth=depth, mixed_chunk=mixed, prefix_cache=prefix,
        beside_rows=beside, beside_filled=0.0, mixed_tokens=short,
    )  # fmt: skip
    world = World(Shape(config, 96 // page, 96, 8), seed)
    world.oracle.early = 0.0 if late else 0.3
    rng = random.Random(seed)
    for i in range(24):
        prompt = [*world.families[i % 3][: rng.randrange(40)], rng.randrange(VOCAB)]
        world.submit(prompt, Sampling(max_tokens=rng.randrange(1, 40), seed=i))
        for _ in range(rng.randrange(4)):
            world.iterate()
            world.check()
    return world


def test_prefills_beside_are_reckoned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if rows grew and ended at once, the same loads are too much."""
    add, fits = Outlook.add, Outlook.fits
    monkeypatch.setattr(Outlook, "add", lambda self, *row, last=False: add(self, *row[:3]))
    monkeypatch.setattr(Outlook, "fits", lambda self, *row: fits(self, *row[:4]))
    retracted = 0
    for seed in range(5):
        world = full_world(seed, 4, 64, 1, False, True, beside=1)
        world.drain()
        retracted += world.scheduler.stats().retractions
    assert retracted, "the loads above do not press on the pool"


def test_a_planted_bug_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.Running, "outlook", lambda self, *_: _Blind())
    retracted = 0
    for seed in range(5):
        world = full_world(seed, 4, 64, 1, False, True)
        world.drain()
        retracted += world.scheduler.stats().retractions
    assert retracted, "the loads above do not press on the pool"


class _Blind(Outlook):
    """Sees nothing coming."""

    def __init__(self) -> None:
        none = np.empty(0, dtype=np.int32)
        super().__init__(4, none, none, none, 0)

    def fits(self, tokens: int, rest: int, common: int, total: int, last: bool = False) -> bool:
        return True
