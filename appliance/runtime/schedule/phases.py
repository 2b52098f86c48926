"""Phases: where the host's time of a step goes, counted always and shown in a trace when asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Span = Callable[[str], AbstractContextManager[Any]]
"""Makes a named span of a trace."""


class Phase:
    """`with phase:` adds to seconds. One at a time; began: when the last one did (monotonic)."""

    __slots__ = ("_clock", "_inner", "_name", "_span", "began", "seconds")

    def __init__(self, name: str, span: Span | None, clock: Callable[[], float]) -> None:
        self.seconds = self.began = 0.0
        self._name, self._span, self._clock = name, span, clock
        self._inner: AbstractContextManager[Any] | None = None

    def __enter__(self) -> None:
        if self._span is not None:
            self._inner = self._span(self._name)
            self._inner.__enter__()
        self.began = self._clock()

    def __exit__(self, *error: Any) -> None:
        self.seconds += self._clock() - self.began
        if self._inner is not None:
            self._inner.__exit__(*error)
            self._inner = None


class Phases:
    """schedule: the next step is chosen. launch: it is queued on the device, its inputs made.
    wait: for its tokens. settle: they become deltas, on their way to the frontends."""

    def __init__(
        self, span: Span | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.schedule = Phase("schedule", span, clock)
        self.launch = Phase("launch", span, clock)
        self.wait = Phase("wait", span, clock)
        self.settle = Phase("settle", span, clock)
        self.inputs_s = 0.0
        """The part of launch in which inputs were made, as the executor tells it."""
