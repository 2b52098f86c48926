"""Requests that an operator cancels: a file that every frontend looks at four times a second."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from appliance import paths
from appliance.status import Cancels, publish
from appliance.supervisor.snapshot import read_frontends

_KEPT_S = 10.0
"""How long an id stays in the file; a frontend that was busy for so long has the id by then."""


class CancelDesk:
    def __init__(self, run: Path) -> None:
        self._run = run
        self._lately: deque[tuple[float, str]] = deque(maxlen=1000)
        paths.cancels(run).unlink(missing_ok=True)

    def add(self, name: str) -> bool:
        """False when no frontend shows a live request of that id."""
        rows = (row for frontend in read_frontends(self._run) for row in frontend.requests)
        if not any(row.id == name for row in rows):
            return False
        now = time.monotonic()
        while self._lately and now - self._lately[0][0] > _KEPT_S:
            self._lately.popleft()
        if name not in [known for _, known in self._lately]:
            self._lately.append((now, name))
        publish(paths.cancels(self._run), Cancels(tuple(known for _, known in self._lately)))
        return True
