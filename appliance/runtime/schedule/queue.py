"""Waiting requests and the policy that orders them. Priority comes before every policy."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby, islice

from appliance.runtime.config import Policy
from appliance.runtime.schedule.cache.cache import Cache
from appliance.runtime.schedule.request import Request

LOOK_UP_MOST = 128
"""With more waiting, policies that look each one up in the cache go by arrival."""


def _rank(request: Request) -> tuple[int, float, int]:
    return request.rank


def _priority(request: Request) -> int:
    return request.rank[0]


class Queue:
    """Kept by priority, then arrival; a retracted request so comes back to its old place."""

    def __init__(self, policy: Policy, cache: Cache, seed: int = 0) -> None:
        self._policy = policy
        self._cache = cache
        self._random = random.Random(seed)
        self._waiting: list[Request] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._waiting)

    def add(self, request: Request) -> None:
        insort(self._waiting, request, key=_rank)

    def remove(self, request: Request) -> None:
        at = bisect_left(self._waiting, request.rank, key=_rank)
        assert self._waiting[at] is request
        del self._waiting[at]

    def remove_all(self, requests: Collection[Request]) -> None:
        for request in requests:
            self.remove(request)

    def order(self) -> Sequence[Request]:
        """Who is to be admitted first, by the policy."""
        waiting = self._waiting
        if self._policy == "random":
            return sorted(waiting, key=lambda r: (r.rank[0], self._random.random()))
        if self._policy == "lof":
            return sorted(waiting, key=lambda r: (r.rank[0], -r.left, r.rank))
        if self._policy == "fcfs" or not 1 < len(waiting) <= LOOK_UP_MOST:
            return tuple(waiting)
        if self._policy == "lpm":
            found = {r.rid: self._cache.lookup(r.wire.cache_key, r.history) for r in waiting}
            return sorted(waiting, key=lambda r: (r.rank[0], -found[r.rid], r.rank))
        ordered: list[Request] = []
        for _, group in groupby(waiting, key=_priority):
            equals = list(group)
            by_weight = self._cache.by_weight([(r.wire.cache_key, r.history) for r in equals])
            ordered += [equals[i] for i in by_weight]
        return ordered

    def touch(self, most: int) -> None:
        """Keeps cached beginnings of the first `most` from being evicted while they wait."""
        for request in islice(self._waiting, most):
            self._cache.lookup(request.wire.cache_key, request.history, touch=True)
