"""One run of the appliance through its real command line, in folders of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from appliance.client import Client
from appliance.errors import NotRunningError
from appliance.status import RunStatus, TopSnapshot


def until(true: Callable[[], bool], what: str, limit_s: float = 60.0) -> None:
    """Looks until it is so; fails with `what` when it never is."""
    end = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(0.02)


class Stand:
    """`up -d --wait` on entering, everything gone on leaving.

    words: further ones for `up`, in which HOME is the stand's own folder. Each stand has its own
    state, runtime and config folders, under a short name: a Unix socket's path has 107 characters.
    """

    def __init__(self, *words: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="apl"))
        self._words = [word.replace("HOME", str(self.home)) for word in words]
        self._seen: dict[int, psutil.Process] = {}
        names = ("STATE", "RUNTIME", "CONFIG", "CACHE")
        own = {f"APPLIANCE_{n}_DIR": str(self.home / n.lower()) for n in names}
        self.environment = os.environ | own | {"NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
        self.client = Client(self.home / "runtime" / "default" / "control.sock", timeout=10.0)

    def __enter__(self) -> Stand:
        try:
            door = [] if "--uds" in self._words else ["--port", "0"]
            up = self.cli("up", *self._words, *door, "-d", "--wait=120")
            assert up.returncode == 0, up.stderr
            self.status()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the run, by force if need be, and removes its folders."""
        try:
            self.client.down(0.0)
        except (NotRunningError, OSError):
            pass
        _, left = psutil.wait_procs(self._seen.values(), timeout=5)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=5)
        shutil.rmtree(self.home, ignore_errors=True)

    def cli(self, *words: str, limit_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "appliance", *words],
            env=self.environment,
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=limit_s,
        )

    def cli_json(self, *words: str) -> Any:
        done = self.cli(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def status(self) -> RunStatus:
        status = self.client.status()
        for row in status.processes:
            if row.pid not in self._seen and psutil.pid_exists(row.pid):
                self._seen[row.pid] = psutil.Process(row.pid)
        return status

    def top(self) -> TopSnapshot:
        return self.client.top()

    @property
    def url(self) -> str:
        return self.status().url

    def pid(self, role: str) -> int:
        """Of the supervisor, the first frontend or the engine's rank 0."""
        return next(p.pid for p in self.status().processes if p.role == role)

    def strike(self, role: str, blow: signal.Signals) -> int:
        """Sends a signal to a process of the run; its pid."""
        pid = self.pid(role)
        os.kill(pid, blow)
        return pid

    def wait_ready(self) -> None:
        until(lambda: self.status().state == "ready", "the run is ready again")
