"""One thread that asks the supervisor again and again and posts what came of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from textual.message import Message

from appliance.errors import ApplianceError
from appliance.status import TopSnapshot
from appliance.tui.messages import Away, Polled

SHORTEST_S, LONGEST_S = 0.25, 10.0
_LONGEST_BACK_OFF_S = 5.0


class Source(Protocol):
    """What the dashboard needs of a client."""

    def top(self) -> TopSnapshot: ...

    def down(self, drain_s: float = 30.0) -> None: ...


class Poller:
    """Runs from ``start`` to ``stop``; waits longer after each failure, up to 5 s."""

    def __init__(self, source: Source, interval: float, post: Callable[[Message], object]) -> None:
        self._source, self._post = source, post
        self.interval = min(LONGEST_S, max(SHORTEST_S, interval))
        self._stopped = threading.Event()
        # A daemon, so that a supervisor that hangs cannot hold up the end of the dashboard.
        self._thread = threading.Thread(target=self._run, name="poller", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def slower(self) -> None:
        self.interval = min(LONGEST_S, self.interval * 2)

    def faster(self) -> None:
        self.interval = max(SHORTEST_S, self.interval / 2)

    def _run(self) -> None:
        failures, since = 0, 0.0
        while not self._stopped.is_set():
            try:
                message: Message = Polled(self._source.top())
                failures = 0
            except ApplianceError as problem:
                since = since if failures else monotonic()
                failures += 1
                message = Away(problem.message, since)
            if self._stopped.is_set():
                return
            self._post(message)
            back_off = min(_LONGEST_BACK_OFF_S, self.interval * 2 ** min(failures, 6))
            self._stopped.wait(max(self.interval, back_off))
