import numpy as np
from world import VOCAB, settled

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.wire.delta import TokenDelta
from appliance.runtime.wire.request import Sampling, TokenRequest, ids_to_bytes
from appliance.runtime.wire.step import PromptLogprobs, Step, StepLogprobs, StepResult


def make(**config: object) -> Scheduler:
    return Scheduler(ScheduleConfig(page_size=4, **config), 32, 40, 4, VOCAB)  # type: ignore[arg-type]


def request(rid: int, prompt: list[int], sampling: Sampling) -> TokenRequest:
    return TokenRequest(rid=rid, prompt=ids_to_bytes(prompt), sampling=sampling)


def answer(step: Step, *tokens: int, **more: object) -> StepResult:
    return StepResult(np.array(tokens, dtype=np.int32), **more)  # type: ignore[arg-type]


def turn(scheduler: Scheduler, *tokens: int, **more: object) -> list[TokenDelta]:
    step = scheduler.next_step()
    assert step is not None
    return settled(scheduler, step, answer(step, *tokens, **more))


def test_tokens_come_one_by_one_until_max_tokens() -> None:
    scheduler = make()
    scheduler.add(request(1, [1, 2, 3], Sampling(max_tokens=3)))
    assert turn(scheduler, 7) == [TokenDelta(1, 0, (7,), cached=0)]
    assert turn(scheduler, 8) == [TokenDelta(1, 1, (8,))]
    assert turn(scheduler, 9) == [TokenDelta(1, 2, (9,), "length")]
    assert scheduler.next_step() is None and scheduler.idle


def test_a_stop_id_ends_and_is_given() -> None:
    scheduler = make()
    scheduler.add(request(1, [1, 2, 3], Sampling(max_tokens=9, stop_ids=(5,))))
    turn(scheduler, 7)
    assert turn(scheduler, 5) == [TokenDelta(1, 1, (5,), "stop", 5)]
    assert scheduler.idle


def test_a_stop_id_before_min_tokens_does_not_end() -> None:
    scheduler = make()
    scheduler.add(request(1, [1, 2, 3], Sampling(max_tokens=9, stop_ids=(5,), min_tokens=2)))
    assert turn(scheduler, 5)[0].finish == ""
    assert turn(scheduler, 5)[0].finish == ""
    assert turn(scheduler, 5)[0].finish == "stop"


def test_more_stop_ids_than_the_table_is_wide() -> None:
    scheduler = make()
    stops = tuple(range(20, 40))
    scheduler.add(request(1, [1, 2, 3], Sampling(max_tokens=9, stop_ids=stops)))
    turn(scheduler, 7)
    assert turn(scheduler, 39) == [TokenDelta(1, 1, (39,), "stop", 39)]


def test_the_context_ends_a_request_by_length() -> None:
    scheduler = make()
    scheduler.add(request(1, list(range(38)), Sampling(max_tokens=9)))
    turn(scheduler, 7)
    assert turn(scheduler, 8)[0].finish == "length"


def test_max_tokens_0_computes_the_prompt_and_gives_no_token() -> None:
    scheduler = make()
    scheduler.add(request(1, [1, 2], Sampling(max_tokens=0, prompt_logprobs=0)))
    top = np.zeros((1, 0), dtype=np.int32)
    part = PromptLogprobs(0, np.array([-0.5], np.float32), top, top.astype(np.float32))
    (delta,) = turn(scheduler, 7, prompt_logprobs=[part])
    assert (delta.ids, delta.finish) == ((), "length")
    assert [(e.id, e.logprob) for e in delta.prompt_logprobs] == [(1, 0.0), (2, -0.5)]


def test_an_invalid_row_ends_its_request_alone_and_is_not_cached() -> None:
    scheduler = make()
    scheduler.add(request(1, [1, 2, 3, 4, 5], Sampling(max_tokens=4)))
    scheduler.add(request(2, [6, 7, 8, 9, 1], Sampling(max_tokens=4)))
    bad, good = sorted(turn(scheduler, 7, 8, invalid=(0,)), key=lambda d: d.rid)
    assert bad.finish == "error" and "not finite" in bad.error and bad.ids == ()
    assert good.ids == (8,)
    assert scheduler.cache.lookup("", np.array([1, 2, 3, 4], np.int32)) == 0
    assert scheduler.cache.lookup("", np.array([6, 7, 8, 9], np.int32)) == 4
    assert [d.rid for d in turn(scheduler, 9)] == [2]


def test_logprobs_come_with_the_width_each_request_asked() -> None:
    scheduler = make()
    scheduler.add(request(1, [1, 2, 3], Sampling(max_tokens=2, logprobs=2)))
    scheduler.add(request(2, [4, 5, 6], Sampling(max_tokens=2, logprobs=0)))
    found = StepLogprobs(
        np.array([-0.5, -0.25], np.float32),
        np.array([[7, 1, 2], [8, 3, 4]], np.int32),
        np.array([[-0.5, -1, -2], [-0.25, -3, -4]], np.float32),
    )
    one, two = turn(scheduler, 7, 8, logprobs=found)
    assert (one.logprobs[0].id, one.logprobs[0].logprob) == (7, -0.5)
    assert one.logprobs[0].top_ids == (7, 1) and one.logprobs[0].top_logprobs == (-0.5, -1.0)
    assert two.logprobs[0].id == 8 and two.logprobs[0].top_ids == ()


def test_overlapped_the_extra_token_of_a_finished_row_is_thrown_away() -> None:
    scheduler = make(depth=1)
    scheduler.add(request(1, [1, 2, 3], Sampling(max_tokens=9, stop_ids=(5,))))
    first = scheduler.next_step()
    second = scheduler.next_step()
    assert first is not None and second is not None
    assert second.slots.tolist() == first.slots.tolist() and second.outputs.tolist() == [1]
    assert settled(scheduler, first, answer(first, 5))[0].finish == "stop"
    assert scheduler.next_step() is None and not scheduler.idle
    assert settled(scheduler, second, answer(second, 6)) == []
    assert scheduler.idle
    scheduler.check()


def test_overlapped_a_row_that_ends_by_length_is_not_launched_again() -> None:
    scheduler = make(depth=1)
    scheduler.add(request(1, [1, 2, 3], Sampling(max_tokens=2)))
    first, second = scheduler.next_step(), scheduler.next_step()
    assert first is not None and second is not None
    assert scheduler.next_step() is None
    settled(scheduler, first, answer(first, 7))
    assert scheduler.next_step() is None
    assert settled(scheduler, second, answer(second, 8))[0].finish == "length"
    assert scheduler.idle
