"""How fast requests end, so that a caller who is turned away hears when there may be room."""

from __future__ import annotations

from collections import deque

WINDOW_S = 30.0
MOST = 1024
"""Ends that are remembered."""
SOONEST_S, LATEST_S = 0.5, 60.0
UNKNOWN_S = 1.0
"""While nothing has ended yet."""


class Pace:
    """Times are of one clock, and never go back."""

    def __init__(self) -> None:
        self._ends: deque[tuple[float, int]] = deque(maxlen=MOST)

    def ended(self, now: float, tokens: int) -> None:
        """A request left, and with it its tokens."""
        self._ends.append((now, tokens))

    def wait_for_requests(self, now: float, count: int) -> float:
        """Seconds until about `count` more have ended."""
        return self._wait(now, count, len(self._recent(now)))

    def wait_for_tokens(self, now: float, tokens: int) -> float:
        """Seconds until requests with about so many tokens have ended."""
        return self._wait(now, tokens, sum(t for _, t in self._recent(now)))

    def _recent(self, now: float) -> deque[tuple[float, int]]:
        while self._ends and self._ends[0][0] < now - WINDOW_S:
            self._ends.popleft()
        return self._ends

    def _wait(self, now: float, wanted: int, seen: int) -> float:
        if not seen:
            return UNKNOWN_S
        span = max(now - self._ends[0][0], SOONEST_S)
        return min(max(wanted * span / seen, SOONEST_S), LATEST_S)
