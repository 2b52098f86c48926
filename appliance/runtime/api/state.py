"""What the supervisor says of the run, read anew when its file has changed."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from appliance.errors import RequestError, UsageError
from appliance.runtime.config import RuntimeConfig, read_config
from appliance.status import Cancels, RunState, about


class RunStateFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._state = RunState()

    def read(self) -> RunState:
        """The last known state when the file is unreadable. One stat while nothing changes."""
        try:
            st = self._path.stat()
            seen = (st.st_mtime_ns, st.st_ino, st.st_size)
            if seen != self._seen:
                self._state = msgspec.json.decode(self._path.read_bytes(), type=RunState)
                self._seen = seen
        except (OSError, msgspec.DecodeError):
            pass
        return self._state


class CancelFile:
    """What the operator has cancelled, each id told once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._told: set[str] = set()

    def fresh(self) -> list[str]:
        """Ids that were not there before. One stat while nothing changes."""
        try:
            st = self._path.stat()
            seen = (st.st_mtime_ns, st.st_ino)
            if seen == self._seen:
                return []
            ids = msgspec.json.decode(self._path.read_bytes(), type=Cancels).ids
        except (OSError, msgspec.DecodeError):
            return []
        self._seen = seen
        new = [name for name in ids if name not in self._told]
        self._told = set(ids)
        return new


class ConfigFile:
    """The run's settings, which a reload may change. config: those that this process began with."""

    def __init__(self, path: Path, config: RuntimeConfig) -> None:
        self._path, self.config = path, config
        self.version = 0
        """Of the file that was read last: the time at which it was written, in ns."""

    def fresh(self) -> RuntimeConfig | None:
        """The settings, where they are others than before. One stat while nothing changes."""
        try:
            version = self._path.stat().st_mtime_ns
            if version == self.version:
                return None
            config = read_config(self._path)
        except (OSError, UsageError):
            return None
        self.version = version
        if config == self.config:
            return None
        self.config = config
        return config


def refusal(state: RunState, draining: bool, reachable: bool) -> RequestError | None:
    """Why a new request cannot be taken now, or None.

    reachable: an engine is connected, or was and is being started again.
    """
    if draining or state.state in ("draining", "stopped"):
        return _unavailable("the server is shutting down.", "draining", 5.0)
    if state.state == "failed":
        why = state.failure or "the engine could not be started."
        return _unavailable(f"the run has failed: {why}", "engine_failed", None)
    if reachable:
        return None
    detail = f" ({state.detail})" if state.detail else ""
    remaining = state.ready_at - time.time()
    left = f", {about(remaining)} left" if remaining > 0 else ""
    return _unavailable(
        f"the model is still loading: {state.phase}, {state.progress:.0%}{detail}{left}.",
        "loading",
        2.0,
    )


def _unavailable(message: str, code: str, retry_after_s: float | None) -> RequestError:
    return RequestError(
        message, status=503, type="server_error", code=code, retry_after_s=retry_after_s
    )
