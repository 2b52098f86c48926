import numpy as np

from appliance.runtime.schedule.cache.cache import Cache
from appliance.runtime.schedule.request import Request
from appliance.runtime.schedule.running import LINGER, RESERVE_MOST, NewTokenRatio, Running, by_loss
from appliance.runtime.wire.request import Sampling, TokenRequest, ids_to_bytes


def decoding(running: Running, cache: Cache, rid: int, length: int, **sampling: object) -> Request:
    """A request with its prompt computed, in a slot of its own."""
    values = {"max_tokens": 10, "stop_ids": (1,)} | sampling
    wire = TokenRequest(rid, ids_to_bytes(range(length)), Sampling(**values))  # type: ignore[arg-type]
    request = Request(wire, rid)
    lease = cache.reserve("", request.history, True)
    lease.pages += cache.take(cache.pages_of(length) - len(lease.pages)).tolist()
    slot = running.take_slot(request)
    request.begin_prefill(slot, lease, rid)
    request.begin_decode()
    running.stand(slot, length, len(lease.pages) * cache.page_size)
    running.begin_decode(slot)
    return request


def share(value: float) -> NewTokenRatio:
    """So much of what rows may take, whatever lengths were seen."""
    ratio = NewTokenRatio(1.0)
    ratio.value, ratio.caution = value, 1e9
    return ratio


def test_only_rows_that_cross_a_page_grow() -> None:
    running, cache = Running(4, 100), Cache(16, 4, True)
    full, inside = (decoding(running, cache, rid, n) for rid, n in ((1, 8), (2, 6)))
    rows = running.ready()
    slots, columns, pages = running.grow(rows, rows.crossing(), cache)
    assert slots.tolist() == [full.slot]
    assert columns.tolist() == [2]
    assert full.lease is not None and inside.lease is not None
    assert full.lease.pages[2:] == pages.tolist() and len(inside.lease.pages) == 2
    assert len(running.ready()) == 2 and running.ready().crossing().tolist() == []


def test_a_row_at_its_end_is_not_ready() -> None:
    running, cache = Running(4, 12), Cache(16, 4, True)
    by_tokens = decoding(running, cache, 1, 3, max_tokens=2)
    by_context = decoding(running, cache, 2, 10, max_tokens=99)
    assert running.last_length(by_context) == 12
    assert running.ready().slots.tolist() == sorted([by_tokens.slot, by_context.slot])
    running.advance(running.ready())
    assert running.ready().slots.tolist() == []


def test_the_outlook_takes_a_share_of_the_rest_but_for_those_that_cannot_stop() -> None:
    def rest(asked: int, ratio: NewTokenRatio, **sampling: object) -> int:
        running, cache = Running(4, 100_000), Cache(4096, 1, True)
        decoding(running, cache, 1, 4, max_tokens=asked, **sampling)
        return running.outlook(ratio, cache).peak - 4 - LINGER

    half = share(0.5)
    assert rest(11, half) == 5
    assert rest(11, half, stop_ids=()) == 10
    assert rest(50_000, half) == RESERVE_MOST // 2
    half.caution = 1.0  # lengths that were seen are believed: none yet, so what is thought likely
    assert 900 < rest(50_000, half) < 1200 and rest(11, half) == 5
    assert rest(50_000, half, stop_ids=()) == RESERVE_MOST


def test_what_rows_have_in_common_is_counted_once_and_stays_when_one_of_them_ends() -> None:
    running, cache = Running(4, 1000), Cache(64, 4, True)
    long = decoding(running, cache, 1, 16, max_tokens=41, stop_ids=())
    assert long.lease is not None and cache.common == 0
    cache.commit(long.lease, long.history)
    short = decoding(running, cache, 2, 20, max_tokens=2, stop_ids=())
    assert short.lease is not None
    assert cache.common == cache.common_of(long.lease) == cache.common_of(short.lease) == 4
    # 4 shared, 1 of the short one's own, and what both grow by: first both, then the long one.
    assert cache.held == 5
    assert running.outlook(share(1.0), cache).peak == 4 + cache.pages_of(40 + LINGER)
    cache.release(long.lease)
    assert cache.common == cache.common_of(short.lease) == 0


def test_slots_left_are_told_once_and_used_again() -> None:
    running, cache = Running(2, 100), Cache(16, 4, True)
    request = decoding(running, cache, 1, 4)
    running.move(request.slot, 0, np.array([9], dtype=np.int32))
    running.leave_slot(request.slot)
    assert running.take_freed() == [request.slot] and running.take_freed() == []
    assert running.take_moved() == [], "a row that has gone reads no pages"
    assert running.free_slots == 2


def test_the_least_output_is_lost_first_then_the_longest_prompt() -> None:
    running, cache = Running(4, 100), Cache(64, 4, True)
    rows = [decoding(running, cache, rid, n) for rid, n in ((1, 8), (2, 6), (3, 6))]
    rows[0].output = [1, 2]
    rows[1].output = [1]
    rows[2].output = [1, 2]
    assert [r.rid for r in by_loss(rows)] == [3, 1, 2]
