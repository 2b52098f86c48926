"""Groups of leases that begin alike: over random trees, what they share is the same pages, they are
disjoint, and no other way of taking whole branches together saves more."""

from __future__ import annotations

import random

import numpy as np
import pytest

from appliance.runtime.schedule.cache.cache import Cache, Lease
from appliance.runtime.schedule.cache.radix import Node
from appliance.runtime.schedule.cache.shared import groups_of

PAGE = 2


def grow(cache: Cache, tokens: list[int]) -> Lease:
    """A row that has computed `tokens`: all full pages are in the tree."""
    ids = np.array(tokens, dtype=np.int32)
    lease = cache.reserve("", ids, True)
    lease.pages += cache.take(cache.pages_of(len(ids)) - lease.shared).tolist()
    cache.commit(lease, ids)
    return lease


def random_leases(rng: random.Random) -> list[Lease]:
    cache = Cache(4000, PAGE, True)
    known: list[list[int]] = [[]]
    leases = []
    for _ in range(rng.randrange(1, 14)):
        base = rng.choice(known)
        cut = rng.randrange(len(base) + 1)
        tokens = base[:cut] + [rng.randrange(3) for _ in range(rng.randrange(12))]
        known.append(tokens)
        leases.append(grow(cache, tokens))
    return leases


def best(node: Node, leases: list[Lease]) -> int:
    """Most that can be saved below `node` when each child goes with it whole, or not at all."""
    path = len(leases_path(node))
    here = sum(lease.node is node for lease in leases)
    below = [(best(c, leases), rows_below(c, leases)) for c in node.children.values()]
    most = sum(saved for saved, _ in below)
    for chosen in range(1 << len(below)):
        rows, saved = here, 0
        for i, (own, count) in enumerate(below):
            if chosen >> i & 1:
                rows += count
            else:
                saved += own
        if rows > 1:
            most = max(most, saved + (rows - 1) * path)
    return most


def leases_path(node: Node) -> list[int]:
    pages: list[int] = []
    step: Node | None = node
    while step is not None:
        pages = step.pages.tolist() + pages
        step = step.parent
    return pages


def rows_below(node: Node, leases: list[Lease]) -> int:
    count = sum(lease.node is node for lease in leases)
    return count + sum(rows_below(c, leases) for c in node.children.values())


@pytest.mark.parametrize("seed", range(60))
def test_random_trees(seed):
    rng = random.Random(seed)
    leases = random_leases(rng)
    groups = groups_of(leases)
    members = [m for g in groups for m in g.members]
    assert len(members) == len(set(members))
    for group in groups:
        assert len(group.members) > 1 and group.pages > 0
        assert all(leases[m].shared >= group.pages for m in group.members)
        assert len({tuple(leases[m].pages[: group.pages]) for m in group.members}) == 1
    root = leases[0].node
    while root.parent is not None:
        root = root.parent
    assert sum(g.saved for g in groups) == best(root, leases)


def test_groups_outlive_splits_and_ends():
    cache = Cache(100, PAGE, True)
    first, second = grow(cache, [1] * 8), grow(cache, [1] * 8 + [2, 2])
    [group] = groups_of([first, second])
    assert (group.members, group.pages) == ([0, 1], 4)
    before = first.pages[: group.pages]
    third = grow(cache, [1] * 4 + [3] * 4)  # splits the node that both share
    assert first.pages[: group.pages] == second.pages[: group.pages] == before
    assert sorted(g.pages for g in groups_of([first, second, third])) == [4]
    cache.release(first)
    assert [g.pages for g in groups_of([second, third])] == [2]
    assert groups_of([second]) == []


def test_nothing_in_common():
    cache = Cache(100, PAGE, True)
    assert groups_of([grow(cache, [1, 1, 1]), grow(cache, [2, 2])]) == []
