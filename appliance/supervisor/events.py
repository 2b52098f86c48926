"""What happens to a run, in the order in which it did: a bounded history, and who follows it.

An id names a run's start and the event's place in it, so that a reader who comes back is told what
it missed, or that too much has happened since.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from appliance.status import Event, EventKind, EventLevel
from appliance.supervisor.snapshot import iso

KEPT = 1000
ALIVE_S = 15.0
"""Seconds of silence after which a comment is sent, so that nobody in between hangs up."""
_ID = re.compile(r"([0-9a-f]+)-(\d+)")
_LEVELS: dict[str, EventLevel] = {"death": "error", "failed": "error", "restart": "warn"}


class EventBook:
    """run: its name. started: Unix time."""

    def __init__(self, run: str, started: float, kept: int = KEPT) -> None:
        self._run = run
        self._start = f"{int(started * 1000):x}"
        self._kept: deque[Event] = deque(maxlen=kept)
        self._count = 0
        self._news = asyncio.Event()
        self._closed = False

    def tell(
        self, kind: EventKind, message: str, level: EventLevel | None = None, **detail: Any
    ) -> None:
        first, _, rest = message.partition("\n")
        self._count += 1
        told = Event(
            id=f"{self._start}-{self._count}",
            at=iso(time.time()),
            run=self._run,
            kind=kind,
            level=level or _LEVELS.get(kind, "info"),
            message=first,
            detail=({"why": rest} if rest else {}) | detail,
        )
        self._kept.append(told)
        self._news.set()

    def close(self) -> None:
        """Those who follow are told what is left, and no more."""
        self._closed = True
        self._news.set()

    def since(self, place: int) -> list[Event]:
        """Events behind the first `place` that are kept, oldest first."""
        oldest = self._count - len(self._kept)
        return list(self._kept)[max(0, place - oldest) :]

    def missed(self, after: str) -> tuple[int, Event | None]:
        """(how many events a reader knows whose last was `after`, what it is told of a gap)"""
        oldest = self._count - len(self._kept)
        if not after:
            return oldest, None
        found = _ID.fullmatch(after)
        if found is None or found[1] != self._start or int(found[2]) > self._count:
            return oldest, self._gap("the last event that was known is of another start of the run")
        known = int(found[2])
        if known < oldest:
            return oldest, self._gap(_no_longer(oldest - known))
        return known, None

    async def stream(self, after: str, history: int, follow: bool) -> AsyncIterator[bytes]:
        """Server-sent events: at most `history` of those behind the id `after`, then each new one
        for as long as the run lives."""
        place, gap = self.missed(after)
        if self._count - place > history:
            place, gap = self._count - history, None
        if gap is not None:
            yield _frame(gap)
        while True:
            lost = self._count - len(self._kept) - place
            if lost > 0:
                yield _frame(self._gap(_no_longer(lost)))
            told, place = self.since(place), self._count
            for event in told:
                yield _frame(event)  # more may happen meanwhile: a reader takes its time
            if place < self._count:
                continue
            if self._closed or not follow:
                return
            self._news.clear()
            try:
                async with asyncio.timeout(ALIVE_S):
                    await self._news.wait()
            except TimeoutError:
                yield b": alive\n\n"

    def _gap(self, message: str) -> Event:
        return Event(at=iso(time.time()), run=self._run, kind="gap", level="warn", message=message)


def _no_longer(count: int) -> str:
    return f"{count} event{' is' if count == 1 else 's are'} no longer kept"


def _frame(event: Event) -> bytes:
    head = f"id: {event.id}\n" if event.id else ""
    return head.encode() + b"event: %b\ndata: %b\n\n" % (
        event.kind.encode(),
        msgspec.json.encode(event),
    )
