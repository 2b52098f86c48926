import numpy as np
import pytest

from appliance.runtime.schedule.cache.cache import Cache, Lease


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def row(cache: Cache, tokens: np.ndarray, commit: bool = True) -> Lease:
    """A lease with pages for all of `tokens`, computed."""
    lease = cache.reserve("", tokens[:-1], True)
    lease.pages += cache.take(cache.pages_of(len(tokens)) - len(lease.pages)).tolist()
    if commit:
        cache.commit(lease, tokens)
    return lease


def test_committed_pages_are_found_by_the_next() -> None:
    cache = Cache(8, 2, prefix=True)
    first = row(cache, ids(1, 2, 3, 4, 5))
    second = cache.reserve("", ids(1, 2, 3, 4, 5, 6), True)
    assert second.matched == 4
    assert second.pages == first.pages[:2]
    cache.check([first, second])


def test_pages_of_a_lease_are_not_evicted() -> None:
    cache = Cache(4, 2, prefix=True)
    lease = row(cache, ids(1, 2, 3, 4, 5))
    assert cache.available == 1
    cache.release(lease)
    assert (cache.available, cache.evictable) == (4, 2)
    assert cache.whole
    assert len(cache.take(4)) == 4


def test_without_prefix_cache_nothing_is_kept() -> None:
    cache = Cache(4, 2, prefix=False)
    lease = row(cache, ids(1, 2, 3, 4))
    assert cache.lookup("", ids(1, 2, 3, 4)) == 0
    cache.release(lease)
    assert cache.evictable == 0 and cache.available == 4


def test_a_row_goes_over_to_the_pages_the_tree_had() -> None:
    cache = Cache(8, 2, prefix=True)
    first = row(cache, ids(1, 2, 3, 4, 5), commit=False)
    second = row(cache, ids(1, 2, 3, 4, 6), commit=False)
    own = list(second.pages)
    assert cache.commit(first, ids(1, 2, 3, 4, 5))[1].tolist() == []
    column, pages = cache.commit(second, ids(1, 2, 3, 4, 6))
    assert (column, pages.tolist()) == (0, first.pages[:2])
    assert second.pages == [*first.pages[:2], own[2]]
    cache.check([first, second])
    cache.release(first)
    cache.release(second)
    assert cache.whole


def test_a_lease_outlives_a_split_of_its_node() -> None:
    cache = Cache(8, 1, prefix=True)
    lease = row(cache, ids(1, 2, 3, 4))
    other = cache.reserve("", ids(1, 2, 9), True)
    cache.check([lease, other])
    cache.commit(lease, ids(1, 2, 3, 4))
    cache.release(other)
    cache.release(lease)
    assert cache.whole


def test_what_is_not_to_be_trusted_is_not_found_again() -> None:
    cache = Cache(8, 2, prefix=True)
    lease = row(cache, ids(1, 2, 3, 4, 5))
    cache.release(lease, forget=True)
    assert cache.lookup("", ids(1, 2, 3, 4, 5)) == 0
    assert cache.whole and cache.evictable == 0


def test_clear_leaves_what_rows_use() -> None:
    cache = Cache(8, 2, prefix=True)
    cache.release(row(cache, ids(7, 8, 9, 9)))
    lease = row(cache, ids(1, 2, 3, 4))
    cache.clear()
    assert cache.evictable == 0
    assert cache.lookup("", ids(7, 8)) == 0 and cache.lookup("", ids(1, 2)) == 2
    cache.check([lease])


def test_check_sees_a_lost_page() -> None:
    cache = Cache(4, 2, prefix=True)
    cache.take(1)
    with pytest.raises(AssertionError, match="a page is lost"):
        cache.check([])


def test_check_sees_a_lock_too_many() -> None:
    cache = Cache(4, 2, prefix=True)
    lease = row(cache, ids(1, 2, 3))
    with pytest.raises(AssertionError, match="locks"):
        cache.check([])
    cache.check([lease])
