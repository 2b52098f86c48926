"""One thread that asks the source again and again and posts what came of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from textual.message import Message

from appliance.errors import ApplianceError, NotAuthorisedError
from appliance.tui.messages import Away, Planned, Polled
from appliance.tui.source import History, Source

SHORTEST_S, LONGEST_S = 0.25, 10.0
FEW_LINES, MANY_LINES = 50, 500
_LONGEST_BACK_OFF_S = 5.0


class Poller:
    """Runs from ``start`` to ``stop``; waits longer after each failure, up to 5 s."""

    def __init__(self, source: Source, interval: float, post: Callable[[Message], object]) -> None:
        self._source, self._post = source, post
        self.interval = min(LONGEST_S, max(SHORTEST_S, interval))
        self.lines = FEW_LINES
        """Of the log, from the next answer on."""
        self._history = History()
        self._planned = False
        self._stopped = threading.Event()
        self._now = threading.Event()
        # A daemon, so that a supervisor that hangs cannot hold up the end of the dashboard.
        self._thread = threading.Thread(target=self._run, name="poller", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._now.set()

    def hurry(self) -> None:
        """Asks at once, for something new is wanted."""
        self._now.set()

    def slower(self) -> None:
        self.interval = min(LONGEST_S, self.interval * 2)

    def faster(self) -> None:
        self.interval = max(SHORTEST_S, self.interval / 2)

    def _run(self) -> None:
        failures, since = 0, 0.0
        while not self._stopped.is_set():
            try:
                self._ask()
                failures = 0
            except ApplianceError as problem:
                since = since if failures else monotonic()
                failures += 1
                self._planned = False  # who answers next may be another run
                self._tell(Away(f"{problem.message} {problem.hint}".strip(), since))
            back_off = min(_LONGEST_BACK_OFF_S, self.interval * 2 ** min(failures, 6))
            self._now.wait(max(self.interval, back_off))
            self._now.clear()

    def _ask(self) -> None:
        top = self._source.top(self._history.wanted(), self.lines)
        if not self._planned:
            self._planned = True
            try:
                self._tell(Planned(self._source.plan()))
            except NotAuthorisedError as refused:
                self._tell(Planned({"refused": refused.message}))
            except ApplianceError:
                pass  # a run without a plan file has no origins to show
        self._tell(Polled(self._history.merge(top)))

    def _tell(self, message: Message) -> None:
        if not self._stopped.is_set():
            self._post(message)
