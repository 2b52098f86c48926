import numpy as np
import pytest

from appliance.runtime.schedule.cache.pages import Pages


def test_page_zero_is_never_given_out() -> None:
    pages = Pages(5)
    assert sorted(pages.take(5).tolist()) == [1, 2, 3, 4, 5]
    assert pages.free == 0


def test_what_came_back_is_free_again() -> None:
    pages = Pages(4)
    taken = pages.take(3)
    pages.give(taken[:2])
    assert pages.free == 3
    assert pages.free_set() == {4, *taken[:2].tolist()}


def test_more_than_there_is_cannot_be_taken() -> None:
    with pytest.raises(AssertionError):
        Pages(2).take(3)


def test_a_page_nobody_holds_cannot_come_back() -> None:
    pages = Pages(2)
    taken = pages.take(1)
    pages.give(taken)
    with pytest.raises(AssertionError):
        pages.give(taken)
    with pytest.raises(AssertionError):
        pages.give(np.array([0], dtype=np.int32))
