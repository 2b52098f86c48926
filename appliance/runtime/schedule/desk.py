"""Desk: between the door and the scheduler. It knows which frontend each request came from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.schedule.settle import Next
from appliance.runtime.wire.delta import (
    Admitted,
    Deltas,
    NextTokens,
    StepStats,
    ToFrontend,
    TokenDelta,
)
from appliance.runtime.wire.request import Abort, FlushCache, Hello, ToEngine, TokenRequest

_INT32, _INT64 = np.dtype("<i4"), np.dtype("<i8")


class Door(Protocol):
    """wire.channel.EngineDoor, or what stands in for it in one process."""

    def receive(self, timeout: float) -> list[tuple[int, ToEngine | None]]:
        """(peer, message) of what has come; (peer, None) when a peer has gone."""

    def send(self, peer: int, message: ToFrontend) -> None:
        """Queues a message, never blocks."""


class Desk:
    def __init__(self, door: Door, scheduler: Scheduler) -> None:
        self._door = door
        self._scheduler = scheduler
        self._owners: dict[int, int] = {}
        self._peers: set[int] = set()

    def drain(self, timeout: float) -> None:
        """Takes what has come, waiting up to `timeout` seconds for the first of it."""
        for peer, message in self._door.receive(timeout):
            self._peers.add(peer)
            match message:
                case TokenRequest():
                    self._owners[message.rid] = peer
                    self._scheduler.add(message, peer)
                case Abort():
                    self._abort(message.rid)
                case FlushCache():
                    self._scheduler.flush_cache()
                case Hello():
                    pass
                case None:
                    self._gone(peer)

    def send(
        self,
        deltas: Sequence[TokenDelta],
        stats: StepStats | None = None,
        next: Next | None = None,
    ) -> None:
        """One message for each peer that has deltas or next tokens; with stats, for every peer."""
        owners = self._owners
        parts: dict[int, list[TokenDelta]] = {}
        for delta in deltas:
            peer = owners.get(delta.rid)
            if peer is None:
                continue
            parts.setdefault(peer, []).append(delta)
            if delta.finish:
                del owners[delta.rid]
        for peer in self._peers:
            part, own = parts.get(peer, ()), _next_of(peer, next)
            if part or own is not None or stats is not None:
                self._door.send(peer, Deltas(tuple(part), stats, own))

    def admitted(self, rids: list[int]) -> None:
        """Tells each peer which of its requests got pages."""
        now = time.monotonic()
        parts: dict[int, list[int]] = {}
        for rid in rids:
            peer = self._owners.get(rid)
            if peer is not None:
                parts.setdefault(peer, []).append(rid)
        for peer, part in parts.items():
            self._door.send(peer, Admitted(tuple(part), now))

    def _abort(self, rid: int) -> None:
        if self._owners.pop(rid, None) is not None:
            self._scheduler.abort(rid)

    def _gone(self, peer: int) -> None:
        self._peers.discard(peer)
        for rid in [r for r, owner in self._owners.items() if owner == peer]:
            self._abort(rid)


def _next_of(peer: int, next: Next | None) -> NextTokens | None:
    if next is None:
        return None
    rows = (next.owners == peer).nonzero()[0]
    if not len(rows):
        return None
    rids = next.rids[rows].astype(_INT64, copy=False)
    indices, ids = (part[rows].astype(_INT32, copy=False) for part in (next.indices, next.ids))
    return NextTokens(rids.tobytes(), indices.tobytes(), ids.tobytes())
