"""When a line of a batch may run: what live traffic leaves over."""

from __future__ import annotations

import asyncio
import time

from appliance.runtime.api.batches.calls import PRIORITY
from appliance.runtime.api.frontend import Frontend

STARVED_S = 0.5
"""A live request that has waited this long for its pages takes them from lines of batches."""


QUIET_S = 5.0
"""Without a live request for this long, lines take more rows."""


class Turn:
    """Half of the engines' rows where nothing else runs, else a sixteenth, and none while a live
    request waits. share: frontends among which this is divided."""

    def __init__(self, frontend: Frontend, share: int) -> None:
        self._frontend, self._share = frontend, share
        self._running: list[asyncio.Task[None]] = []
        self._order = asyncio.Lock()
        self._changed = asyncio.Event()
        self._busy_at = float("-inf")

    async def wait(self) -> None:
        """Until one more line may run; in the order of asking."""
        async with self._order:
            while len(self._running) >= self._most():
                self._changed.clear()
                await self._changed.wait()

    def begin(self, line: asyncio.Task[None]) -> None:
        self._running.append(line)
        line.add_done_callback(self._ended)

    def look(self) -> None:
        """A few times a second: the newest half of the lines gives way to live requests that
        wait for pages."""
        starved = self._frontend.starved(above=PRIORITY, seconds=STARVED_S)
        if starved and self._running:
            half = len(self._running) // 2
            for line in self._running[half:]:
                line.cancel("gives way")
        self._changed.set()

    def _ended(self, line: asyncio.Task[None]) -> None:
        self._running.remove(line)
        self._changed.set()

    def _most(self) -> int:
        frontend = self._frontend
        if frontend.draining or frontend.starved(above=PRIORITY, seconds=0.0):
            return 0
        rows = sum(e.welcome.max_running for e in frontend.engines if e.connected and e.welcome)
        if not rows:
            return 0
        if frontend.busy(above=PRIORITY):
            self._busy_at = time.monotonic()
        quiet = time.monotonic() - self._busy_at >= QUIET_S
        return max(1, rows // (2 if quiet else 16) // self._share)
