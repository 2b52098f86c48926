import pytest

from appliance.runtime.config import Policy
from appliance.runtime.schedule.cache.cache import Cache
from appliance.runtime.schedule.queue import LOOK_UP_MOST, Queue
from appliance.runtime.schedule.request import Request
from appliance.runtime.wire.request import Sampling, TokenRequest, ids_to_bytes


def make(
    rid: int, prompt: list[int], arrival: float = 0.0, priority: int = 0, most: int = 4
) -> Request:
    wire = TokenRequest(
        rid=rid,
        prompt=ids_to_bytes(prompt),
        sampling=Sampling(max_tokens=most),
        arrival=arrival,
        priority=priority,
    )
    return Request(wire, rid)


def filled(cache: Cache, *prompts: list[int]) -> Cache:
    for prompt in prompts:
        request = make(0, prompt)
        lease = cache.reserve("", request.history, True)
        lease.pages += cache.take(len(prompt) - len(lease.pages)).tolist()
        cache.commit(lease, request.history)
        cache.release(lease)
    return cache


def order(policy: Policy, cache: Cache, requests: list[Request]) -> list[int]:
    queue = Queue(policy, cache)
    for request in requests:
        queue.add(request)
    return [r.rid for r in queue.order()]


def test_fcfs_goes_by_priority_then_arrival() -> None:
    requests = [make(1, [1], 3.0), make(2, [1], 1.0), make(3, [1], 2.0, priority=1)]
    assert order("fcfs", Cache(4, 1, True), requests) == [3, 2, 1]


def test_equal_arrivals_keep_the_order_they_came_in() -> None:
    assert order("fcfs", Cache(4, 1, True), [make(i, [1]) for i in range(5)]) == [0, 1, 2, 3, 4]


def test_lpm_takes_the_longest_cached_beginning_first() -> None:
    cache = filled(Cache(16, 1, True), [1, 2, 3, 4])
    requests = [make(1, [9, 9]), make(2, [1, 2, 9]), make(3, [1, 2, 3, 4, 5])]
    assert order("lpm", cache, requests) == [3, 2, 1]


def test_priority_comes_before_the_cached_beginning() -> None:
    cache = filled(Cache(16, 1, True), [1, 2, 3, 4])
    requests = [make(1, [9, 9], priority=1), make(2, [1, 2, 9])]
    for policy in ("lpm", "dfs-weight", "lof", "random"):
        assert order(policy, cache, requests) == [1, 2]  # type: ignore[arg-type]


def test_lpm_goes_by_arrival_when_too_many_wait() -> None:
    cache = filled(Cache(16, 1, True), [1, 2, 3])
    requests = [make(i, [9]) for i in range(LOOK_UP_MOST)] + [make(999, [1, 2, 3, 4])]
    assert order("lpm", cache, requests[1:])[0] == 999
    assert order("lpm", cache, requests)[0] == 0


def test_dfs_weight_keeps_branches_together_and_heavy_ones_first() -> None:
    cache = filled(Cache(16, 1, True), [1, 2, 3], [1, 2, 4], [7, 8])
    requests = [make(1, [7, 8, 0]), make(2, [1, 2, 3, 0]), make(3, [1, 2, 4]), make(4, [1, 2, 3])]
    assert order("dfs-weight", cache, requests) == [2, 4, 3, 1]


def test_lof_takes_who_may_take_most_yet_first() -> None:
    """After a retraction that is less than was asked for."""
    requests = [make(i, [1], most=most) for i, most in enumerate((10, 30, 30, 20))]
    requests[2].output.extend([7] * 15)
    requests.append(make(4, [1], priority=1, most=1))
    assert order("lof", Cache(4, 1, True), requests) == [4, 1, 3, 2, 0]


def test_random_is_another_order_with_the_same_requests() -> None:
    queue = Queue("random", Cache(4, 1, True), seed=1)
    for i in range(20):
        queue.add(make(i, [1]))
    first, second = ([r.rid for r in queue.order()] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_request_can_leave_from_anywhere(at: int) -> None:
    queue = Queue("fcfs", Cache(4, 1, True))
    requests = [make(i, [1]) for i in range(3)]
    for request in requests:
        queue.add(request)
    queue.remove(requests[at])
    assert list(queue) == [r for r in requests if r is not requests[at]]
