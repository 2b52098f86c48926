"""A limit of bytes a second over all connections of one pull."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Throttle:
    """Tells a reader how long to wait after each block; a reader that waits fills its socket's
    buffer, so the hub slows down by itself. Safe to call from several threads."""

    def __init__(self, bytes_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """bytes_per_s: 0 is no limit."""
        self._rate = bytes_per_s
        self._clock = clock
        self._paid_until = clock()
        self._guard = threading.Lock()

    def taken(self, count: int) -> float:
        """Seconds to wait for `count` bytes that were just read. What was not used while nothing
        came is not saved up."""
        if not self._rate:
            return 0.0
        with self._guard:
            now = self._clock()
            self._paid_until = max(now, self._paid_until) + count / self._rate
            return self._paid_until - now
