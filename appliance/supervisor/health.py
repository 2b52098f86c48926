"""How long silence may last and how often a part may die: plain arithmetic over a given clock."""

from __future__ import annotations

import signal
from collections import deque

from msgspec import Struct


class Limits(Struct, frozen=True):
    """deaths in window_s seconds are forgiven, each start delayed by the next of delays_s.

    start_deaths: deaths in a row that are forgiven to a part that has not become ready between.
    spawn_s: silence allowed to a process before its first message.
    serve_s: silence allowed to an engine that has said it is ready, until its first Beat.
    frontend_s: least silence allowed to a frontend, whatever it asks for.
    term_s: between SIGTERM and SIGKILL of an engine.
    """

    deaths: int = 3
    window_s: float = 60.0
    start_deaths: int = 3
    delays_s: tuple[float, ...] = (0.0, 1.0, 4.0)
    spawn_s: float = 60.0
    serve_s: float = 3.0
    frontend_s: float = 10.0
    term_s: float = 3.0


class Watch:
    """One process's promise to speak again within so many seconds."""

    def __init__(self, now: float, limit_s: float) -> None:
        self._heard = now
        self._limit_s = limit_s
        self._on = True

    def heard(self, now: float, limit_s: float) -> None:
        self._heard, self._limit_s, self._on = now, limit_s, True

    def off(self) -> None:
        """Nothing is promised until the next `heard`."""
        self._on = False

    def forgive(self, seconds: float) -> None:
        """Time in which we ourselves did not run (a suspended machine) is nobody's silence."""
        self._heard += seconds

    def share(self, now: float) -> float:
        """How much of the silence allowed is used up; above 1 it is too long."""
        return (now - self._heard) / self._limit_s if self._on and self._limit_s > 0 else 0.0

    def overdue(self, now: float) -> float:
        """Seconds of silence when it is too long, else 0."""
        silent = now - self._heard
        return silent if self._on and silent > self._limit_s else 0.0


class Deaths:
    """Counts the deaths of one part and says whether to start it again."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._recent: deque[float] = deque()
        self._in_a_row = 0
        self.total = 0

    def ready(self) -> None:
        self._in_a_row = 0

    def died(self, now: float) -> float | None:
        """Seconds to wait before the next start, or None when it has died too often."""
        self.total += 1
        self._in_a_row += 1
        self._recent.append(now)
        while self._recent and now - self._recent[0] > self._limits.window_s:
            self._recent.popleft()
        if len(self._recent) > self._limits.deaths or self._in_a_row > self._limits.start_deaths:
            return None
        delays = self._limits.delays_s
        return delays[min(len(self._recent), len(delays)) - 1] if delays else 0.0

    def in_words(self) -> str:
        if self._in_a_row > self._limits.start_deaths:
            return f"{self._in_a_row} starts and died each time before it was ready"
        return f"{len(self._recent)} deaths in {self._limits.window_s:.0f} s"


def exit_words(returncode: int) -> str:
    """`exited with status 70`, `was killed by SIGKILL`."""
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"was killed by {name}"
