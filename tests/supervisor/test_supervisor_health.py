"""Silence and deaths over a clock of our own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.supervisor.health import Deaths, Limits, Watch, exit_words


def test_watch_counts_from_the_last_word() -> None:
    watch = Watch(0.0, 3.0)
    assert watch.overdue(3.0) == 0
    assert watch.overdue(3.1) > 3
    watch.heard(3.0, 10.0)
    assert watch.overdue(12.9) == 0
    assert watch.overdue(13.5) == 10.5


def test_watch_forgives_time_in_which_nobody_ran() -> None:
    watch = Watch(0.0, 3.0)
    watch.forgive(100.0)
    assert watch.overdue(102.9) == 0
    assert watch.overdue(103.1) > 0


def test_watch_off_says_nothing_until_heard() -> None:
    watch = Watch(0.0, 1.0)
    watch.off()
    assert watch.overdue(1e9) == 0
    watch.heard(1e9, 1.0)
    assert watch.overdue(1e9 + 2) == 2


def test_more_than_three_deaths_in_a_minute_are_too_many() -> None:
    deaths = Deaths(Limits())
    for second in (0.0, 10.0, 20.0):
        assert deaths.died(second) is not None
        deaths.ready()
    assert deaths.died(59.0) is None
    assert deaths.total == 4


def test_old_deaths_are_forgotten() -> None:
    deaths = Deaths(Limits())
    for minute in range(20):
        assert deaths.died(minute * 30.0) is not None
        deaths.ready()


def test_delays_grow() -> None:
    deaths = Deaths(Limits())
    assert [deaths.died(t) for t in (0.0, 1.0, 2.0)] == [0.0, 1.0, 4.0]


def test_slow_starts_that_never_end_well_are_too_many() -> None:
    """Each start takes longer than the window: the row of failures counts."""
    deaths = Deaths(Limits())
    assert [deaths.died(t * 100.0) is None for t in range(4)] == [False, False, False, True]


@given(st.lists(st.floats(0.0, 30.0), max_size=40))
def test_never_more_than_the_limit_in_any_window(gaps: list[float]) -> None:
    limits = Limits(deaths=3, window_s=60.0)
    deaths, now, forgiven = Deaths(limits), 0.0, []
    for gap in gaps:
        now += gap
        if deaths.died(now) is None:
            break
        deaths.ready()
        forgiven.append(now)
        assert sum(now - t <= 60.0 for t in forgiven) <= 3


def test_exit_words() -> None:
    assert exit_words(70) == "exited with status 70"
    assert exit_words(-9) == "was killed by SIGKILL"
    assert exit_words(-11) == "was killed by SIGSEGV"
