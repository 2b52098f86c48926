"""Frontends: what stands on the other side of the loop's door. What they ask may come late, they
may lose their connection, and what arrives is compared with what the scheduler has said."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable

from appliance.runtime.wire.delta import Admitted, Deltas, ToFrontend, TokenDelta
from appliance.runtime.wire.request import Abort, ToEngine, TokenRequest


class Frontends:
    """One at a time, by another connection after each loss. dropped: called with the id of a
    request when its abort comes, of which nothing may be said any more.

    unheard: ids of requests of a connection that was lost, until they come by the next one; what is
    said of them meanwhile reaches nobody.
    """

    def __init__(self, rng: random.Random, late: bool, dropped: Callable[[int], object]) -> None:
        self._rng, self._late, self._dropped = rng, late, dropped
        self._inbox: deque[tuple[int, ToEngine | None]] = deque()
        self._peer = 1
        self._owners: dict[int, int] = {}
        self._said: dict[int, list[TokenDelta]] = {}
        self._arrived: dict[int, list[TokenDelta]] = {}
        self.unheard: set[int] = set()

    def ask(self, message: ToEngine) -> None:
        self._inbox.append((self._peer, message))

    def lose(self) -> None:
        """The connection, with what was on its way; the engine sees it some time."""
        for _, message in self._inbox:
            if isinstance(message, Abort):
                self._dropped(message.rid)
        seen_yet = [entry for entry in self._inbox if entry[1] is None]
        self._inbox = deque([*seen_yet, (self._peer, None)])
        self._peer += 1
        self.unheard |= set(self._owners)

    def return_with(self, requests: Iterable[TokenRequest]) -> None:
        """By a new connection, which may be seen before the loss of the one before."""
        sent = [(self._peer, request) for request in requests]
        at = self._rng.randint(0, len(sent))
        self._inbox = deque([*sent[:at], *self._inbox, *sent[at:]])

    def receive(self, timeout: float) -> list[tuple[int, ToEngine | None]]:
        if not self._inbox:
            return []
        most = len(self._inbox)
        some = self._rng.randint(0, most) if self._late else most
        came = [self._inbox.popleft() for _ in range(some)]
        for peer, message in came:
            match message:
                case TokenRequest():
                    self._owners[message.rid] = peer
                    self.unheard.discard(message.rid)
                case Abort():
                    self._dropped(message.rid)
                    self._owners.pop(message.rid, None)
                case None:
                    self._owners = {r: p for r, p in self._owners.items() if p != peer}
        return came

    def hear(self, deltas: Iterable[TokenDelta]) -> list[TokenDelta]:
        """What the scheduler says; those of it that somebody will hear."""
        for delta in deltas:
            self._said.setdefault(delta.rid, []).append(delta)
        return [delta for delta in deltas if delta.rid not in self.unheard]

    def send(self, peer: int, message: ToFrontend) -> None:
        if isinstance(message, Admitted):
            assert all(self._owners[rid] == peer for rid in message.rids)
        if isinstance(message, Deltas):
            for delta in message.each():
                assert self._owners[delta.rid] == peer, "a delta for another connection"
                self._arrived.setdefault(delta.rid, []).append(delta)

    def end_turn(self) -> None:
        assert self._said == self._arrived, "a delta is lost on its way, kept back or made up"
        for deltas in self._said.values():
            if deltas[-1].finish:
                self._owners.pop(deltas[-1].rid, None)
        self.forget()

    def forget(self) -> None:
        self._said, self._arrived = {}, {}
