"""The one door to the pages: who may read which, which are free, which can be had by eviction.

A row's pages are its Lease. Pages of the tree are shared. A row that computed what another had
put in the tree meanwhile goes over to the tree's pages, and its own come free: a flight in the air
may still read them, but what would overwrite them is launched, and so runs, after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from appliance.runtime.schedule.cache.pages import Pages
from appliance.runtime.schedule.cache.radix import Node, Radix, Shared

Int32s = npt.NDArray[np.int32]

_NO_PAGES: Int32s = np.empty(0, dtype=np.int32)


class Lease:
    """What one row holds.

    pages: its page table. The first `matched` tokens were cached when it came. The first `shared`
    pages are the tree's path to `node`, the others nobody else's.
    """

    __slots__ = ("matched", "node", "pages", "shared")

    def __init__(self, node: Node, pages: list[int], matched: int) -> None:
        self.node = node
        self.pages = pages
        self.matched = matched
        self.shared = len(pages)

    def own(self) -> Int32s:
        return np.array(self.pages[self.shared :], dtype=np.int32)


class Cache:
    """Pages and tree together; `free + cached + what leases own` is always the whole pool."""

    def __init__(self, total_pages: int, page_size: int, prefix: bool) -> None:
        self.page_size = page_size
        self.total = total_pages
        self.evicted = 0
        self._pages = Pages(total_pages)
        self._tree = Radix(page_size)
        self._prefix = prefix

    @property
    def available(self) -> int:
        """Pages that can be had now, some of them by eviction."""
        return self._pages.free + self._tree.evictable

    @property
    def evictable(self) -> int:
        return self._tree.evictable

    @property
    def held(self) -> int:
        """Pages of the pool that rows use."""
        return self.total - self.available

    @property
    def common(self) -> int:
        """Pages that more than one lease holds."""
        return self._tree.common

    @property
    def whole(self) -> bool:
        """Every page is free or cached: what must hold while no lease is out."""
        return self._pages.free + self._tree.cached == self.total and not self._tree.locked

    def pages_of(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def lookup(self, namespace: str, tokens: Int32s, touch: bool = False) -> int:
        """Tokens of the longest cached beginning. touch: keep it from eviction a while longer."""
        return self._tree.find(namespace, tokens, touch)[1] if self._prefix else 0

    def by_weight(self, wanted: Sequence[tuple[str, Int32s]]) -> list[int]:
        """Indices of `wanted` so that those which share beginnings stand together."""
        return self._tree.by_weight([self._tree.find(name, ids)[0] for name, ids in wanted])

    def reserve(self, namespace: str, tokens: Int32s, match: bool) -> Lease:
        """A lease that shares the longest cached beginning of `tokens`; locked from now on."""
        wanted = tokens if match and self._prefix else tokens[:0]
        node, pages = self._tree.match(namespace, wanted)
        self._tree.lock(node)
        return Lease(node, pages.tolist(), len(pages) * self.page_size)

    def common_of(self, lease: Lease) -> int:
        """Pages of this lease that other leases hold too; the others come free with it."""
        node: Node | None = lease.node
        own = 0
        while node is not None and node.locks < 2:
            own += len(node.pages)
            node = node.parent
        return lease.shared - own

    def hit(self, lease: Lease) -> None:
        """The row of this lease was admitted and goes on from what it found."""
        self._tree.hit(lease.node)

    def most_shared(self, count: int) -> list[Shared]:
        """The beginnings that saved most tokens."""
        return self._tree.shared(count)

    def take(self, count: int) -> Int32s:
        """`count` pages for rows, evicting for them. The caller has asked `available`."""
        self.free_up(count)
        return self._pages.take(count)

    def free_up(self, count: int) -> None:
        """Evicts until `count` pages are free, as far as that goes."""
        self.evict(count - self._pages.free)

    def evict(self, count: int) -> None:
        """Frees up to `count` pages of the tree."""
        if count > 0:
            gone = self._tree.evict(count)
            self.evicted += len(gone)
            self._pages.give(gone)

    def commit(self, lease: Lease, tokens: Int32s) -> tuple[int, Int32s]:
        """Puts the full pages of `tokens`, all of them computed, into the tree.

        Returns a column and the pages, shape [n], that stand from there on in the row's page
        table now, because the tree had them already; the row's own for these are free.
        """
        page, start = self.page_size, lease.shared
        full = len(tokens) // page
        if full <= start or not self._prefix:
            return 0, _NO_PAGES
        own = np.array(lease.pages[start:full], dtype=np.int32)
        node, theirs = self._tree.insert(lease.node, tokens[start * page : full * page], own)
        # The old node stays locked by the new one, which may lie below a node split just now.
        self._tree.lock(node)
        self._tree.unlock(lease.node)
        lease.node, lease.shared = node, full
        lease.pages[start : start + len(theirs)] = theirs.tolist()
        self._pages.give(own[: len(theirs)])
        return start, theirs

    def release(self, lease: Lease, forget: bool = False) -> None:
        """Ends a lease. forget: what it shares is not to be trusted, drop what nobody else uses."""
        self._pages.give(lease.own())
        self._tree.unlock(lease.node)
        if forget:
            self._pages.give(self._tree.prune(lease.node))

    def clear(self) -> None:
        """Empties the tree of everything that no lease uses."""
        self.evict(self._tree.evictable)

    def check(self, leases: Iterable[Lease]) -> None:
        """Walks everything and compares with the counters. AssertionError says what is wrong."""
        held = list(leases)
        free = self._pages.free_set()
        cached: list[int] = []
        for node in self._tree.nodes():
            cached += node.pages.tolist()
            assert len(node.tokens) == len(node.pages) * self.page_size > 0, "a key off the pages"
            assert node.parent is not None and node.parent.locks >= node.locks, (
                "locks grow downward"
            )
            for key, child in node.children.items():
                assert key == child.tokens[: self.page_size].tobytes(), "a child under a wrong key"
            passing = sum(1 for lease in held if self._passes(lease.node, node))
            assert node.locks == passing, f"{node.locks} locks for {passing} leases"
        own = [page for lease in held for page in lease.own().tolist()]
        everything = [*free, *cached, *own]
        assert len(everything) == len(set(everything)), "a page with two owners"
        assert set(everything) == set(range(1, self.total + 1)), "a page is lost"
        assert len(cached) == self._tree.cached, "the count of cached pages is wrong"
        locked = sum(len(n.pages) for n in self._tree.nodes() if n.locks)
        assert locked == self._tree.locked, "the count of locked pages is wrong"
        common = sum(len(n.pages) for n in self._tree.nodes() if n.locks > 1)
        assert common == self._tree.common, "the count of common pages is wrong"
        for lease in held:
            self._check_lease(lease)

    def _passes(self, start: Node, through: Node) -> bool:
        step: Node | None = start
        while step is not None and step is not through:
            step = step.parent
        return step is through

    def _check_lease(self, lease: Lease) -> None:
        path: list[int] = []
        step: Node | None = lease.node
        while step is not None:
            path = step.pages.tolist() + path
            step = step.parent
        assert path == lease.pages[: lease.shared], "a shared page that is not the tree's"
