"""Pulse: the loop's signs of life, and how long it may be silent before one is missed.

A step can take longer than a silence should; so before a step of which that is known or cannot
be known, the next beat is announced for later.
"""

from __future__ import annotations

from collections.abc import Callable

EVERY = 0.25
"""Seconds between beats while steps are short."""
SILENCE = 3.0
"""Seconds of silence that are always allowed."""
MARGIN = 3.0
"""A step may take so many times as long as the slowest of its size so far."""
FIRST = 30.0
"""Seconds for the very first step, or something else, of which nothing is known."""
UNSEEN = 10.0
"""Least seconds for a step larger than any before."""
LONGEST = 600.0


class Pulse:
    """beat(steps, limit_s): says that the loop lives and when it will say so again at the latest.

    warmup: (tokens, seconds) of a step that was timed before the loop began; with one of the
    largest size, no silence is ever longer than it must be.
    """

    def __init__(
        self, beat: Callable[[int, float], None], warmup: tuple[int, float] | None = None
    ) -> None:
        self._beat = beat
        self._slowest: dict[int, float] = {}
        self._last = float("-inf")
        self._limit = SILENCE
        if warmup is not None:
            self.took(*warmup)

    def before(self, tokens: int, steps: int, now: float) -> None:
        """A step of `tokens` will be waited for."""
        limit = self.limit(tokens)
        if limit > self._limit or now - self._last >= EVERY:
            self._send(steps, limit, now)

    def chore(self, steps: int, now: float) -> None:
        """Something that is no step comes now, of which nothing is known."""
        self._send(steps, FIRST, now)

    def after(self, tokens: int, seconds: float, steps: int, now: float) -> None:
        self.took(tokens, seconds)
        if self._limit > SILENCE:
            self._send(steps, SILENCE, now)

    def idle(self, steps: int, now: float) -> None:
        if self._limit > SILENCE or now - self._last >= EVERY:
            self._send(steps, SILENCE, now)

    def took(self, tokens: int, seconds: float) -> None:
        size = tokens.bit_length()
        self._slowest[size] = max(seconds, self._slowest.get(size, 0.0))

    def limit(self, tokens: int) -> float:
        """Seconds a step of `tokens` may take."""
        size = tokens.bit_length()
        if not self._slowest:
            return FIRST
        # A smaller step takes no longer than one of the next size that has been.
        seen = min((s for s in self._slowest if s >= size), default=None)
        if seen is not None:
            return min(LONGEST, max(SILENCE, MARGIN * self._slowest[seen]))
        smaller = max(self._slowest)
        # Time grows at most like tokens: the weights are read once a step, whatever its size.
        grown = self._slowest[smaller] * 2.0 ** (size - smaller)
        return min(LONGEST, max(UNSEEN, MARGIN * grown))

    def _send(self, steps: int, limit: float, now: float) -> None:
        self._beat(steps, limit)
        self._last, self._limit = now, limit
