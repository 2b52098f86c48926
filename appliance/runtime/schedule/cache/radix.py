"""The prefix tree: token ids -> the pages that hold their keys and values.

Every edge holds whole pages, so keys are cut to multiples of the page size and a node's children
differ in their first page. A lock on a node holds all of its ancestors; what nothing locks can be
evicted, leaves first, least recently used first, from a leaf's end.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]

_NO_IDS: Int32s = np.empty(0, dtype=np.int32)

HOT_MOST = 64
"""Nodes kept in mind as often shared; twice as many are held before the least are dropped."""


class Shared(NamedTuple):
    """A beginning that rows have shared. number: its name, for as long as it is in the tree.

    tokens: its length; own: of these, those behind the beginning above it. hits: rows that found it
    here. rows: that use it now.
    """

    number: int
    tokens: int
    own: int
    hits: int
    rows: int


class Node:
    """An edge and its lower end. A root has no parent and no tokens.

    tokens int32 [n * page size], pages int32 [n]. locks: of this node and all below it.
    used: tick of the last use. queued: it stands in the eviction heap. hits: rows that found it
    here; number: given with the first of them.
    """

    __slots__ = (
        "children", "hits", "locks", "number", "pages", "parent", "queued", "tokens", "used",
    )  # fmt: skip

    def __init__(self, parent: Node | None, tokens: Int32s, pages: Int32s, used: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.pages = pages
        self.children: dict[bytes, Node] = {}
        self.locks = 0
        self.used = used
        self.queued = False
        self.hits = 0
        self.number = 0

    @property
    def saved(self) -> int:
        """Tokens that were not computed thanks to this edge."""
        return self.hits * len(self.tokens)


def _same(a: Int32s, b: Int32s) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax())
    return first if differs[first] else n


class Radix:
    """One tree a namespace. `cached`, `locked` and `common` count pages: those locked cannot be
    evicted, those in common are locked more than once."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.cached = 0
        self.locked = 0
        self.common = 0
        self._roots: dict[str, Node] = {}
        self._names: dict[Node, str] = {}
        self._heap: list[tuple[int, int, Node]] = []
        self._tick = 0
        self._pushes = 0
        self._hot: dict[Node, None] = {}
        self._numbers = 0

    @property
    def evictable(self) -> int:
        return self.cached - self.locked

    def find(self, namespace: str, tokens: Int32s, touch: bool = False) -> tuple[Node | None, int]:
        """The node where the longest cached beginning ends, or ends inside, and its length.

        touch: the path counts as used now. Nothing else changes.
        """
        self._tick += touch
        node = self._roots.get(namespace)
        at, page = 0, self.page_size
        while node is not None and len(tokens) - at >= page:
            child = node.children.get(tokens[at : at + page].tobytes())
            if child is None:
                break
            same = _same(child.tokens, tokens[at:]) // page * page
            node, at = child, at + same
            if touch:
                child.used = self._tick
            if same < len(child.tokens):
                break
        return node, at

    def match(self, namespace: str, tokens: Int32s) -> tuple[Node, Int32s]:
        """The node where the longest cached beginning ends, and its pages, shape [n].

        Splits a node when it ends inside one. The path counts as used now.
        """
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Node(None, _NO_IDS, _NO_IDS, 0)
            self._names[root] = namespace
        self._tick += 1
        parts: list[Int32s] = []
        node, at = root, 0
        while (child := self._step(node, tokens, at)) is not None:
            child.used = self._tick
            parts.append(child.pages)
            node, at = child, at + len(child.tokens)
        return node, np.concatenate(parts) if parts else _NO_IDS

    def insert(self, node: Node, tokens: Int32s, pages: Int32s) -> tuple[Node, Int32s]:
        """Adds `tokens` (whole pages) below `node`, with `pages` where the tree has none yet.

        Returns the node where they end and the pages that the tree had already for the first
        of them; as many of `pages` stay the caller's, the others are the tree's from now on.
        """
        self._tick += 1
        parts: list[Int32s] = []
        at = 0
        while (child := self._step(node, tokens, at)) is not None:
            child.used = self._tick
            parts.append(child.pages)
            node, at = child, at + len(child.tokens)
        had = at // self.page_size
        if at < len(tokens):
            new = Node(node, tokens[at:].copy(), pages[had:].copy(), self._tick)
            node.children[self._key(new.tokens)] = new
            self.cached += len(new.pages)
            node = new
            self._offer(node)
        return node, np.concatenate(parts) if parts else _NO_IDS

    def lock(self, node: Node) -> None:
        """Locks `node` and its ancestors."""
        step: Node | None = node
        while step is not None:
            if step.locks == 0:
                self.locked += len(step.pages)
            elif step.locks == 1:
                self.common += len(step.pages)
            step.locks += 1
            step = step.parent

    def unlock(self, node: Node) -> None:
        step: Node | None = node
        while step is not None:
            step.locks -= 1
            assert step.locks >= 0
            if step.locks == 0:
                self.locked -= len(step.pages)
                self._offer(step)
            elif step.locks == 1:
                self.common -= len(step.pages)
            node, step = step, step.parent
        self._drop_empty_root(node)

    def hit(self, node: Node) -> None:
        """A row shares everything down to `node`."""
        while node.parent is not None:
            if not node.number:
                self._numbers += 1
                node.number = self._numbers
            node.hits += 1
            self._hot[node] = None
            node = node.parent
        if len(self._hot) > 2 * HOT_MOST:
            self._hot = dict.fromkeys(self._hottest()[:HOT_MOST])

    def shared(self, count: int) -> list[Shared]:
        """The beginnings that saved most tokens, of those still in the tree."""
        found = []
        for node in self._hottest()[:count]:
            tokens, step = 0, node
            while step.parent is not None:
                tokens, step = tokens + len(step.tokens), step.parent
            found.append(Shared(node.number, tokens, len(node.tokens), node.hits, node.locks))
        return found

    def _hottest(self) -> list[Node]:
        """Nodes that are remembered and still in the tree, those that saved most first."""
        alive = [node for node in self._hot if node.parent is not None]
        return sorted(alive, key=lambda node: node.saved, reverse=True)

    def evict(self, count: int) -> Int32s:
        """Removes up to `count` pages that nothing locks; returns them."""
        parts: list[Int32s] = []
        while count > 0 and self._heap:
            used, _, node = heapq.heappop(self._heap)
            node.queued = False
            if node.locks or node.children or node.parent is None:
                continue
            if node.used != used:
                self._offer(node)
                continue
            if len(node.pages) > count:
                keep = len(node.pages) - count
                parts.append(node.pages[keep:])
                node.pages = node.pages[:keep].copy()
                node.tokens = node.tokens[: keep * self.page_size].copy()
                self.cached -= count
                self._offer(node)
                break
            count -= len(node.pages)
            parts.append(node.pages)
            self._remove(node)
        return np.concatenate(parts) if parts else _NO_IDS

    def prune(self, node: Node) -> Int32s:
        """Removes `node` and those above it, as far as nothing else needs them; returns pages."""
        parts: list[Int32s] = []
        while node.parent is not None and not node.children and node.locks == 0:
            parent = node.parent
            parts.append(node.pages)
            self._remove(node)
            node = parent
        return np.concatenate(parts) if parts else _NO_IDS

    def by_weight(self, places: Sequence[Node | None]) -> list[int]:
        """Order of a depth-first walk that takes the branch with most of `places` below it first.

        Returns indices into `places`; those at one node keep their order, None comes last.
        """
        weight: dict[Node, int] = {}
        here: dict[Node, list[int]] = {}
        for index, place in enumerate(places):
            if place is None:
                continue
            here.setdefault(place, []).append(index)
            step: Node | None = place
            while step is not None:
                weight[step] = weight.get(step, 0) + 1
                step = step.parent
        order: list[int] = []
        stack = sorted((r for r in self._roots.values() if r in weight), key=weight.__getitem__)
        while stack:
            node = stack.pop()
            order += here.get(node, ())
            below = [c for c in node.children.values() if c in weight]
            stack += sorted(below, key=weight.__getitem__)
        return order + [i for i, place in enumerate(places) if place is None]

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots."""
        stack = [c for root in self._roots.values() for c in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()

    def _key(self, tokens: Int32s) -> bytes:
        return tokens[: self.page_size].tobytes()

    def _step(self, node: Node, tokens: Int32s, at: int) -> Node | None:
        """The child that goes on with tokens[at:], split where they part from it."""
        page = self.page_size
        if len(tokens) - at < page:
            return None
        child = node.children.get(tokens[at : at + page].tobytes())
        if child is None:
            return None
        same = _same(child.tokens, tokens[at:]) // page * page
        return child if same == len(child.tokens) else self._split(child, same)

    def _split(self, node: Node, at: int) -> Node:
        """Cuts an edge; `node` keeps its lower part, so that what holds it need not know."""
        assert node.parent is not None
        cut = at // self.page_size
        upper = Node(node.parent, node.tokens[:at].copy(), node.pages[:cut].copy(), node.used)
        upper.locks, upper.hits = node.locks, node.hits
        node.parent.children[self._key(upper.tokens)] = upper
        node.tokens, node.pages, node.parent = node.tokens[at:].copy(), node.pages[cut:], upper
        upper.children[self._key(node.tokens)] = node
        if upper.hits:
            self._numbers += 1
            upper.number = self._numbers
            self._hot[upper] = None
        return upper

    def _offer(self, node: Node) -> None:
        """Puts a leaf that nothing locks in the heap, once."""
        if node.queued or node.locks or node.children or node.parent is None:
            return
        node.queued = True
        self._pushes += 1
        heapq.heappush(self._heap, (node.used, self._pushes, node))

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[self._key(node.tokens)]
        node.parent = None
        self.cached -= len(node.pages)
        self._offer(parent)
        self._drop_empty_root(parent)

    def _drop_empty_root(self, node: Node) -> None:
        """Forgets a namespace that holds nothing, or they would pile up."""
        if node in self._names and not node.children and node.locks == 0:
            del self._roots[self._names.pop(node)]
