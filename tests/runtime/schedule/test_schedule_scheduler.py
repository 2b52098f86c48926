import numpy as np
import pytest
from oracle import OracleError
from world import VOCAB, Shape, World

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.schedule import admit
from appliance.runtime.schedule.gather import TRY_AGAIN
from appliance.runtime.schedule.running import NewTokenRatio
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.wire.request import Sampling, TokenRequest, ids_to_bytes


def world(pages: int = 32, context: int = 200, rows: int = 4, **config: object) -> World:
    values = {"page_size": 4, "depth": 0} | config
    return World(Shape(ScheduleConfig(**values), pages, context, rows))  # type: ignore[arg-type]


def prompt(length: int, start: int = 0) -> list[int]:
    return [(start + i) % VOCAB for i in range(length)]


def scheduler(pages: int = 32, context: int = 200) -> Scheduler:
    return Scheduler(ScheduleConfig(page_size=4), pages, context, 4, VOCAB)


def refusal(asked: Scheduler, **changes: object) -> str:
    wire = TokenRequest(1, ids_to_bytes(prompt(5)), Sampling(max_tokens=4))
    fields = {f: getattr(wire, f) for f in wire.__struct_fields__} | changes
    asked.add(TokenRequest(**fields))
    (delta,) = asked.notices()
    assert delta.finish == "error" and asked.idle
    return delta.error


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    error = refusal(scheduler(context=20), prompt=ids_to_bytes(prompt(20)))
    assert "20 tokens" in error and "context of 20" in error


def test_a_prompt_larger_than_the_pool_is_refused_with_both_numbers() -> None:
    error = refusal(scheduler(pages=4), prompt=ids_to_bytes(prompt(17)))
    assert "17 tokens" in error and "need 5 cache pages" in error and "pool has 4" in error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": b""}, "empty"),
        ({"prompt": ids_to_bytes([1, VOCAB])}, f"Token id {VOCAB}"),
        ({"prompt": ids_to_bytes([1, -4])}, "Token id -4"),
        ({"crashes": 2}, "Quarantined"),
        ({"sampling": Sampling(max_tokens=-1)}, "max_tokens is -1"),
        ({"sampling": Sampling(max_tokens=1, logit_bias=((VOCAB, 1.0),))}, "logit_bias"),
    ],
)
def test_what_can_never_run_is_refused_in_words(changes: dict[str, object], words: str) -> None:
    assert words in refusal(scheduler(), **changes)


@pytest.mark.parametrize(("output", "finish"), [([1, 2, 3], "length"), ([1, 9], "stop"), ([1], "")])
def test_a_replay_that_is_already_at_its_end_only_ends(output: list[int], finish: str) -> None:
    asked = scheduler()
    sampling = Sampling(max_tokens=3, stop_ids=(9,))
    asked.add(TokenRequest(1, ids_to_bytes([1]), sampling, ids_to_bytes(output)))
    assert [(d.finish, d.index, d.ids) for d in asked.notices()] == (
        [(finish, len(output), ())] if finish else []
    )


def test_chunks_end_on_pages_and_one_request_at_a_time_is_in_part() -> None:
    w = world(chunk=10, prefix_cache=False)
    w.submit(prompt(19), Sampling(max_tokens=1))
    w.submit(prompt(9, 30), Sampling(max_tokens=1))
    seen = []
    while (step := w.scheduler.next_step()) is not None:
        seen.append(list(zip(step.starts.tolist(), step.lengths.tolist(), strict=True)))
        w.by_hand(step)
    assert seen == [[(0, 8)], [(8, 8)], [(16, 3), (0, 4)], [(4, 5)]]


def test_without_chunks_a_long_prompt_goes_alone() -> None:
    w = world(chunk=0, max_prefill=16, prefix_cache=False)
    for start, length in ((0, 6), (10, 40), (20, 6), (30, 6)):
        w.submit(prompt(length, start), Sampling(max_tokens=1))
    lengths = []
    while (step := w.scheduler.next_step()) is not None:
        lengths.append(step.lengths.tolist())
        w.by_hand(step)
    assert lengths == [[6], [40], [6, 6]]


def test_prefill_goes_before_decode_and_with_it_when_mixed() -> None:
    for mixed in (False, True):
        w = world(chunk=16, mixed_chunk=mixed, prefix_cache=False)
        w.submit(prompt(5), Sampling(max_tokens=5))
        w.iterate()
        w.submit(prompt(6, 20), Sampling(max_tokens=5))
        step = w.scheduler.next_step()
        assert step is not None
        assert step.prefill_rows == 1
        assert step.lengths.tolist() == ([6, 1] if mixed else [6])
        assert len(step.ids) == 6


def test_rows_join_a_prefill_that_stays_short_with_them() -> None:
    w = world(chunk=16, mixed_tokens=7, prefix_cache=False, rows=4)
    w.submit(prompt(5), Sampling(max_tokens=9))
    w.iterate()
    for length, expected in ((6, [6, 1]), (6, [6]), (4, [4, 1, 1, 1])):
        w.submit(prompt(length, 20), Sampling(max_tokens=9))
        step = w.scheduler.next_step()
        assert step is not None and step.lengths.tolist() == expected
        w.by_hand(step)


def test_a_shared_beginning_is_computed_once() -> None:
    w = world(pages=64, rows=8)
    for tail in range(4):
        w.submit([*prompt(40), tail], Sampling(max_tokens=3))
    w.drain_requests()
    stats = w.scheduler.stats()
    assert stats.cache_hit_tokens == 3 * 40
    (shared,) = stats.shared
    assert (shared.tokens, shared.own, shared.hits) == (40, 40, 3)
    assert stats.prompt_tokens == 41 + 3


def test_output_is_cached_for_the_next_turn() -> None:
    w = world(pages=64)
    w.submit(prompt(10), Sampling(max_tokens=12))
    w.drain_requests()
    w.submit([*w.transcripts[-1], 5], Sampling(max_tokens=1))
    w.drain_requests()
    assert w.scheduler.stats().cache_hit_tokens == 20


def test_a_whole_prompt_in_the_cache_still_computes_its_last_token() -> None:
    w = world()
    for _ in range(2):
        w.submit(prompt(8), Sampling(max_tokens=1))
        w.drain_requests()
    assert w.scheduler.stats().cache_hit_tokens == 4


def test_prompt_logprobs_and_other_namespaces_do_not_share() -> None:
    w = world(pages=64)
    w.submit(prompt(12), Sampling(max_tokens=1))
    w.drain_requests()
    w.submit(prompt(12), Sampling(max_tokens=1, prompt_logprobs=1))
    w.submit(prompt(12), Sampling(max_tokens=1), key="tenant")
    w.drain_requests()
    assert w.scheduler.stats().cache_hit_tokens == 0


def test_retraction_keeps_one_going_and_loses_nothing() -> None:
    for depth in (0, 1):
        w = world(pages=16, rows=8, conservativeness=0.0, depth=depth)
        for i in range(5):
            w.submit(prompt(5, 9 * i), Sampling(max_tokens=20, stop_ids=(VOCAB,), seed=i))
        w.drain_requests()
        assert w.scheduler.stats().retractions > 0
        assert w.errors == 0 and w.finished == 5


def test_the_last_row_ends_with_both_numbers_when_the_pool_is_its_own() -> None:
    w = world(pages=4, prefix_cache=False)
    rid = w.submit(prompt(5), Sampling(max_tokens=100, seed=1))
    deltas = []
    collect = w.collect
    w.collect = lambda d: (deltas.extend(d), collect(d))[1]  # type: ignore[method-assign]
    w.drain_requests()
    assert deltas[-1].rid == rid and deltas[-1].finish == "error"
    assert "17 tokens" in deltas[-1].error and "16" in deltas[-1].error


def test_a_forced_retraction_loses_nothing() -> None:
    for depth in (0, 1):
        w = world(depth=depth, retract_every=2)
        for i in range(4):
            w.submit(prompt(7, i), Sampling(max_tokens=9, seed=i))
        w.drain()
        assert w.scheduler.stats().retractions >= 3


def test_aborted_pages_return_at_the_next_boundary_and_two_later_overlapped() -> None:
    for depth in (0, 1):
        w = world(depth=depth, prefix_cache=False)
        rid = w.submit(prompt(9), Sampling(max_tokens=30))
        for _ in range(4):
            w.iterate()
        assert w.scheduler.cache.available < 32
        w.abort(rid)
        assert (w.scheduler.cache.available == 32) == (depth == 0)
        w.iterate()
        assert w.scheduler.cache.available == 32 and w.scheduler.idle
        w.drain()


def test_abort_of_what_is_unknown_or_waits() -> None:
    w = world(rows=1)
    w.submit(prompt(5), Sampling(max_tokens=3))
    waiting = w.submit(prompt(5), Sampling(max_tokens=3))
    w.iterate()
    w.abort(waiting)
    w.abort(999)
    w.drain_requests()
    assert w.finished == 1 and w.scheduler.stats().aborts == 1


def test_a_request_sent_twice_runs_once() -> None:
    w = world()
    rid = w.submit(prompt(5), Sampling(max_tokens=4))
    w.iterate()
    life = w.live[rid]
    life.emitted.clear()
    w._ask(life.wire)
    w.drain_requests()
    assert w.finished == 1


def test_higher_priority_goes_first() -> None:
    w = world(rows=1)
    w.submit(prompt(5), Sampling(max_tokens=1))
    w.submit(prompt(5), Sampling(max_tokens=1))
    urgent = w.submit(prompt(5), Sampling(max_tokens=1), priority=3)
    w.iterate()
    assert list(w.done) == [urgent]


def test_admission_reserves_for_what_runs() -> None:
    few = world(pages=16, conservativeness=2.0, prefix_cache=False)
    many = world(pages=16, conservativeness=0.0, prefix_cache=False)
    for w in (few, many):
        for i in range(4):
            w.submit(prompt(5, i), Sampling(max_tokens=20, stop_ids=(VOCAB - 1,)))
        for _ in range(TRY_AGAIN + 4):
            w.iterate()
    assert few.scheduler.stats().running < many.scheduler.stats().running
    few.drain()
    many.drain()


@pytest.mark.parametrize("depth", [0, 1])
def test_rows_with_penalties_are_no_more_than_have_tables(
    depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those beyond wait, and nobody waits for them."""
    monkeypatch.setattr(admit, "PENALIZED_MOST", 2)
    w = world(pages=64, rows=8, depth=depth, prefix_cache=False, retract_every=5)
    penalized = [
        w.submit(prompt(5, i), Sampling(max_tokens=8, repetition_penalty=1.2)) for i in range(7)
    ]
    others = [w.submit(prompt(5, i), Sampling(max_tokens=3)) for i in range(9)]
    w.abort(penalized.pop())
    most = 0
    while w.live:
        w.iterate()
        w.check()
        rows = w.scheduler.running.rows()
        most = max(most, sum(r.sampling.penalized for r in rows))
        assert w.scheduler.running.penalized == sum(r.sampling.penalized for r in rows)
    assert most == 2 and w.finished == len(penalized) + len(others)
    ended = list(w.done)
    assert max(map(ended.index, others)) < max(map(ended.index, penalized))
    w.drain()


def test_the_new_token_ratio_falls_to_its_floor_and_is_corrected() -> None:
    ratio = NewTokenRatio(1.0)
    assert ratio.value == 0.7
    for _ in range(600):
        ratio.decay()
    assert ratio.value == pytest.approx(0.098) and ratio.caution == 1.0
    ratio.correct(decoded=100, rows=5, most=399)
    assert ratio.value == 0.5 and ratio.caution == 2.0
    ratio.correct(decoded=100, rows=5, most=10)
    assert ratio.value == 1.0 and ratio.caution == 4.0
    ratio.reset()
    assert ratio.value == 0.7 and ratio.caution == 1.0
    assert NewTokenRatio(5.0).value == 1.0 and NewTokenRatio(5.0).caution == 5.0


def test_what_those_before_took_lets_more_in() -> None:
    """Of requests that ask for 40 tokens and stop after two, twice as many run at once."""

    def most_at_once(learnt: int) -> int:
        w = world(pages=40, rows=16, prefix_cache=False)
        for _ in range(learnt):
            w.scheduler.running.lengths.ended(2, stopped=True)
        w.scheduler.running.lengths.refresh(np.zeros(0, dtype=np.int32))
        for i in range(16):
            w.submit(prompt(4, 10 * i), Sampling(max_tokens=40, stop_ids=(1,)))
        w.iterate()
        return w.scheduler.running.count

    assert most_at_once(200) >= 2 * most_at_once(0) > 0


def test_flush_empties_what_no_row_uses() -> None:
    w = world()
    w.submit(prompt(12), Sampling(max_tokens=1))
    w.drain_requests()
    w.submit(prompt(8, 30), Sampling(max_tokens=5))
    w.iterate()
    w.flush()
    assert w.scheduler.cache.evictable == 0
    w.drain()


def test_the_stats_add_up() -> None:
    w = world(prefix_cache=False)
    w.submit(prompt(9), Sampling(max_tokens=3))
    w.iterate()
    stats = w.scheduler.stats()
    assert (stats.running, stats.waiting, stats.steps) == (1, 0, 1)
    assert (stats.used_tokens, stats.total_tokens) == (12, 128)
    assert (stats.prompt_tokens, stats.generated_tokens) == (9, 1)


def test_the_oracle_sees_a_page_that_is_not_the_rows() -> None:
    w = world()
    w.submit(prompt(9), Sampling(max_tokens=3))
    w.iterate()
    step = w.scheduler.next_step()
    assert step is not None
    w.oracle.slots[0].pages[0] = 30
    flight = w.oracle.launch(step)
    flight.sample(None)
    with pytest.raises(OracleError, match="wrong KV"):
        flight.wait()


def test_steps_are_plain_int32_arrays() -> None:
    w = world()
    w.submit(prompt(9), Sampling(max_tokens=3))
    step = w.scheduler.next_step()
    assert step is not None
    assert step.page_ids.min() >= 1
    for array in (step.slots, step.starts, step.lengths, step.ids, step.outputs, step.page_slots):
        assert array.dtype == np.int32
