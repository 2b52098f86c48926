import numpy as np

from appliance.runtime.schedule.cache.cache import Cache
from appliance.runtime.schedule.newest import WIDTH
from appliance.runtime.schedule.request import Request
from appliance.runtime.schedule.running import LINGER, RESERVE_MOST, NewTokenRatio, Running, by_loss
from appliance.runtime.wire.request import Sampling, TokenRequest, ids_to_bytes


def decoding(running: Running, cache: Cache, rid: int, length: int, **sampling: object) -> Request:
    """A request with its prompt computed, in a slot of its own."""
    values = {"max_tokens": 10, "stop_ids": (1,)} | sampling
    wire = TokenRequest(rid, ids_to_bytes(range(length)), Sampling(**values))  # type: ignore[arg-type]
    request = Request(wire, rid)
    lease = cache.reserve("", request.history, True)
    lease.pages.extend(cache.take(cache.pages_of(length) - len(lease.pages)).tolist())
    slot = running.take_slot(request, lease)
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


def test_rows_are_gathered_anew_only_when_one_joins_leaves_or_moves_by_itself() -> None:
    running, cache = Running(4, 100), Cache(64, 4, True)
    one, two = (decoding(running, cache, rid, n, max_tokens=50) for rid, n in ((1, 5), (2, 6)))
    rows = running.ready()
    for step in range(3):
        assert running.ready() is rows and rows.outputs.tolist() == [1 + step] * 2
        running.advance(rows)
    assert rows.starts.tolist() == running.position[rows.at].tolist() == [8, 9]
    changes = (
        lambda: decoding(running, cache, 3, 7, max_tokens=50),
        lambda: running.stand(two.slot, 20, 24),
        lambda: running.begin_beside([one.slot]),
        lambda: running.end_beside(np.array([one.slot], dtype=np.int32)),
        lambda: running.end_decode(two.slot),
    )
    found = []
    for change in changes:
        change()
        assert running.ready() is not rows
        rows = running.ready()
        found.append(dict(zip(rows.slots.tolist(), rows.starts.tolist(), strict=True)))
    three = next(slot for slot in found[0] if slot not in (one.slot, two.slot))
    assert found == [
        {one.slot: 8, two.slot: 9, three: 7},
        {one.slot: 8, two.slot: 20, three: 7},
        {two.slot: 20, three: 7},
        {one.slot: 8, two.slot: 20, three: 7},
        {one.slot: 8, three: 7},
    ]


def test_a_step_of_some_of_the_rows_leaves_the_others_where_they_are() -> None:
    running, cache = Running(4, 100), Cache(64, 4, True)
    one, two = (decoding(running, cache, rid, n, max_tokens=50) for rid, n in ((1, 5), (2, 6)))
    assert running.without(running.ready(), []) is running.ready()
    alone = running.without(running.ready(), [one.slot])
    running.advance(alone)
    rows = running.ready()
    assert dict(zip(rows.slots.tolist(), rows.starts.tolist(), strict=True)) == {
        one.slot: 5, two.slot: 7,
    }  # fmt: skip


def test_what_a_step_holds_is_never_written_to() -> None:
    running, cache = Running(4, 100), Cache(64, 4, True)
    decoding(running, cache, 1, 8, max_tokens=50)
    rows = running.ready()
    held = rows.slots, rows.starts, rows.outputs
    running.grow(rows, rows.crossing(), cache)
    running.advance(rows)
    assert [part.tolist() for part in held] == [[0], [8], [1]]
    assert rows.starts.tolist() == [9] and rows.capacity.tolist() == [12]


def test_an_output_is_whole_whenever_it_is_read() -> None:
    running, cache = Running(4, 1000), Cache(64, 4, True)
    rows = [decoding(running, cache, rid, n, max_tokens=500) for rid, n in ((1, 5), (2, 6), (3, 4))]
    wrote: list[list[int]] = [[], [], []]
    for step in range(3 * WIDTH + 5):
        each = [i for i in range(3) if step % (i + 1) == 0]
        at = np.array([rows[i].slot for i in each], dtype=np.intp)
        running.tokens.add(at, np.array([100 * step + i for i in each], dtype=np.int32))
        for i in each:
            wrote[i].append(100 * step + i)
        if step % 7 == 0:
            assert rows[0].output.tolist() == wrote[0]
    running.leave_slot(rows[1].slot)
    assert [row.output.tolist() for row in rows] == wrote
    assert rows[1].known().tolist() == [*range(6), *wrote[1]]


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
    rows[0].output.extend([1, 2])
    rows[1].output.extend([1])
    rows[2].output.extend([1, 2])
    assert [r.rid for r in by_loss(rows)] == [3, 1, 2]
