"""/abort_request reaches every frontend: what each was told stands in a file the others look at."""

from __future__ import annotations

import secrets
from collections import deque
from pathlib import Path

from appliance import paths
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.state import CancelFile
from appliance.status import Cancels, publish

REMEMBERED = 256


class Aborts:
    def __init__(self, frontend: Frontend, run: Path, frontends: int) -> None:
        self._frontend = frontend
        self._own = paths.aborts(run, frontend.index)
        self._alone = frontends == 1
        others = [i for i in range(frontends) if i != frontend.index]
        self._files = [CancelFile(paths.aborts(run, i)) for i in others]
        self._lately: deque[str] = deque(maxlen=REMEMBERED)
        for file in self._files:
            file.fresh()

    def add(self, namespace: str, name: str) -> None:
        """Ends requests of a caller here at once, elsewhere within a moment; all without a name."""
        self._frontend.abort(namespace, name)
        if not self._alone:
            self._lately.append(f"{secrets.token_hex(8)} {namespace} {name}")
            publish(self._own, Cancels(tuple(self._lately)))

    def look(self) -> None:
        for file in self._files:
            for told in file.fresh():
                _, namespace, name = told.split(" ", 2)
                self._frontend.abort(namespace, name)
