"""What requests take yet is learnt from those that ended and those that run."""

from __future__ import annotations

import numpy as np
import pytest

from appliance.runtime.schedule.lengths import Lengths

NONE = np.zeros(0, dtype=np.int32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def after(lengths: list[int], running: np.ndarray = NONE) -> Lengths:
    found = Lengths()
    for tokens in lengths:
        found.ended(tokens, stopped=True)
    found.refresh(running)
    return found


def test_before_anything_is_seen_much_is_expected() -> None:
    expected = Lengths().expected(ints(0, 500, 9000), ints(4096, 4096, 4096))
    assert expected[0] > 900 and (np.diff(expected) > 0).all()
    assert (Lengths().expected(ints(0, 500), ints(20, 1)) <= [20, 1]).all()


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_what_is_left_is_that_of_those_who_came_so_far(spread: float) -> None:
    rng = np.random.default_rng(7)
    took = np.maximum(1, rng.lognormal(np.log(200), spread, 1900)).astype(np.int32)
    found = after(took.tolist())
    for age in (0, 40, 150):
        older = took[took > age] - age
        (expected,) = found.expected(ints(age), ints(4096))
        assert expected == pytest.approx(older.mean(), rel=0.25)
        (bounded,) = found.expected(ints(age), ints(50))
        assert bounded == pytest.approx(np.minimum(older, 50).mean(), rel=0.15)


def test_the_first_of_a_burst_do_not_pass_for_all() -> None:
    """Once one in ten has stopped, of the others it is known that they did not."""
    ended = [25] * 1000
    alone = after(ended).expected(ints(0, 50), ints(4096, 4096))
    among = after(ended, np.full(9000, 50, dtype=np.int32)).expected(ints(0, 50), ints(4096, 4096))
    assert alone[0] < 300 and among[0] > 3 * alone[0] and among[1] > alone[1]


def test_who_was_cut_at_its_bound_tells_only_that_it_lived_so_long() -> None:
    cut = Lengths()
    for _ in range(500):
        cut.ended(100, stopped=False)
    cut.refresh(NONE)
    assert cut.expected(ints(0), ints(4096))[0] > Lengths().expected(ints(0), ints(4096))[0]


def test_another_load_is_learnt_in_time() -> None:
    found = after([1000] * 3000)
    assert found.expected(ints(0), ints(4096))[0] > 700
    for _ in range(8000):
        found.ended(20, stopped=True)
    found.refresh(NONE)
    assert found.expected(ints(0), ints(4096))[0] < 100


def test_no_rows() -> None:
    assert len(Lengths().expected(NONE, NONE)) == 0
