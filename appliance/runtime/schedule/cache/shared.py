"""Which leases begin with the same pages of the tree: groups that read them once together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from appliance.runtime.schedule.cache.cache import Lease
from appliance.runtime.schedule.cache.radix import Node


class Group(NamedTuple):
    """members: indices of leases, two or more. pages: how many of their first pages are the same.

    Read once, they save (members - 1) × pages.
    """

    members: list[int]
    pages: int

    @property
    def saved(self) -> int:
        return (len(self.members) - 1) * self.pages


class _Branch:
    """A node with leases at or below it. depth: pages from the root to its end. saved: by the
    best groups below; whole: that they are one group of everything below."""

    __slots__ = ("children", "depth", "here", "joined", "node", "parent", "rows", "saved")

    def __init__(self, node: Node, parent: _Branch | None) -> None:
        self.node, self.parent = node, parent
        self.depth: int = len(node.pages) + (parent.depth if parent is not None else 0)
        self.here: list[int] = []
        self.children: list[_Branch] = []
        self.rows = self.saved = 0
        self.joined: list[_Branch] | None = None
        if parent is not None:
            parent.children.append(self)


def groups_of(leases: Sequence[Lease]) -> list[Group]:
    """Disjoint groups, chosen to save much: at each node, the branches that gain more by the
    pages up to it than by groups of their own become one group with the leases that end there.

    A lease may be in none. The pages of a group stay its members' for as long as they live.
    """
    branches: dict[Node, _Branch] = {}
    for index, lease in enumerate(leases):
        _branch(branches, lease.node).here.append(index)
    for branch in sorted(branches.values(), key=lambda b: -b.depth):
        _settle(branch)
    groups: list[Group] = []
    pending = [b for b in branches.values() if b.parent is None]
    while pending:
        branch = pending.pop()
        joined = branch.joined
        if joined is not None:
            members = list(branch.here)
            for child in joined:
                members += _below(child)
            groups.append(Group(sorted(members), branch.depth))
        pending += [c for c in branch.children if joined is None or c not in joined]
    return groups


def _branch(branches: dict[Node, _Branch], node: Node) -> _Branch:
    path = []
    step: Node | None = node
    while step is not None and step not in branches:
        path.append(step)
        step = step.parent
    found = branches[step] if step is not None else None
    for part in reversed(path):
        found = branches[part] = _Branch(part, found)
    assert found is not None
    return found


def _settle(branch: _Branch) -> None:
    """Decides for one node whose children are decided."""
    depth, children = branch.depth, branch.children
    branch.rows = len(branch.here) + sum(c.rows for c in children)
    apart = sum(c.saved for c in children)
    joined = [c for c in children if c.rows * depth > c.saved]
    rows = len(branch.here) + sum(c.rows for c in joined)
    together = apart - sum(c.saved for c in joined) + (rows - 1) * depth
    branch.saved = apart
    if rows > 1 and together > apart:
        branch.saved, branch.joined = together, joined


def _below(branch: _Branch) -> list[int]:
    found, pending = [], [branch]
    while pending:
        part = pending.pop()
        found += part.here
        pending += part.children
    return found
