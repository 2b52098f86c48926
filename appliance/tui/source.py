"""Where snapshots come from: a run's supervisor, a recording of one; and what is kept of them.

A recording is NDJSON, plain or gzipped: one line {"schema": "appliance.recording/1", label,
interval_s, plan}, then TopSnapshots whose history holds only what is new since the line before.
"""

from __future__ import annotations

import gzip
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TextIO

import msgspec

from appliance.errors import ApplianceError, NotFoundError, UsageError
from appliance.status import TopSnapshot

HISTORY_S = 900
RECORDING = "appliance.recording/1"
DEMO = Path(__file__).parent / "demo.ndjson.gz"


class Source(Protocol):
    """What the dashboard needs of a client; every method raises ApplianceError."""

    def top(self, history: int = HISTORY_S, lines: int = 50) -> TopSnapshot: ...

    def plan(self) -> dict[str, Any]: ...

    def cancel(self, id: str) -> None: ...

    def down(self, drain_s: float = 30.0) -> None: ...


class History:
    """The last 15 minutes, put together from snapshots that bring a few seconds each."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._seq: int | None = None
        self._at = 0.0
        self._kept: dict[str, deque[float]] = {}
        self._shown: dict[str, list[float]] = {}

    def wanted(self) -> int:
        """Seconds to ask for: all when nothing is known, else what has passed and some more."""
        if self._seq is None:
            return HISTORY_S
        return min(HISTORY_S, int(self._clock() - self._at) + 5)

    def merge(self, top: TopSnapshot) -> TopSnapshot:
        """The snapshot with all the history that is known."""
        given = max((len(values) for values in top.history.values()), default=0)
        new = top.history_seq - (self._seq or 0)
        self._at = self._clock()
        if self._seq is None or not 0 <= new <= given or set(top.history) != set(self._kept):
            self._kept = {n: deque(v, maxlen=HISTORY_S) for n, v in top.history.items()}
            whole = given >= min(top.history_seq, HISTORY_S)
            self._seq = top.history_seq if whole else None
        elif new:
            for name, values in top.history.items():
                self._kept[name].extend(values[-new:])
            self._seq = top.history_seq
        else:
            return msgspec.structs.replace(top, history=self._shown)
        self._shown = {name: list(values) for name, values in self._kept.items()}
        return msgspec.structs.replace(top, history=self._shown)


class Recorder:
    """A source that writes down what it gave."""

    def __init__(self, source: Source, path: Path, interval_s: float) -> None:
        self._source = source
        self._interval_s = interval_s
        self._headed = False
        try:
            self._file: TextIO = path.open("w", encoding="utf-8")
        except OSError as e:
            raise UsageError(
                f"{path} cannot be written: {e.strerror}.",
                "Give --record a file in your own place.",
            ) from e

    def top(self, history: int = HISTORY_S, lines: int = 50) -> TopSnapshot:
        top = self._source.top(history, lines)
        if not self._headed:
            self._headed = True
            self._write(recording_head("", self._interval_s, self._plan()))
        self._write(top)
        return top

    def plan(self) -> dict[str, Any]:
        return self._source.plan()

    def cancel(self, id: str) -> None:
        self._source.cancel(id)

    def down(self, drain_s: float = 30.0) -> None:
        self._source.down(drain_s)

    def close(self) -> None:
        self._file.close()

    def _plan(self) -> dict[str, Any]:
        try:
            return self._source.plan()
        except ApplianceError:
            return {}

    def _write(self, value: object) -> None:
        try:
            self._file.write(msgspec.json.encode(value).decode() + "\n")
            self._file.flush()
        except OSError as e:
            raise UsageError(
                f"the recording cannot be written: {e.strerror}.", "Free some space."
            ) from e


class Replay:
    """A recording as a source: plays at the speed it was taken, and again from its start.

    clock: seconds; the first frame is that of the first call.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = monotonic) -> None:
        head, self._frames = read_recording(path)
        self.label = str(head.get("label") or "REPLAY")
        self._plan: dict[str, Any] = head.get("plan") or {}
        self._interval_s = float(head.get("interval_s") or 1.0)
        self._clock = clock
        self._began: float | None = None
        self._history: dict[str, list[float]] = {}
        self._ends = self._join()

    def top(self, history: int = HISTORY_S, lines: int = 50) -> TopSnapshot:
        now = self._clock()
        self._began = now if self._began is None else self._began
        at = int((now - self._began) / self._interval_s) % len(self._frames)
        end = self._ends[at]
        start = max(0, end - min(history, HISTORY_S))
        shown = {name: values[start:end] for name, values in self._history.items()}
        return msgspec.structs.replace(self._frames[at], history=shown, history_seq=end)

    def plan(self) -> dict[str, Any]:
        return self._plan

    def cancel(self, id: str) -> None:
        raise UsageError("a recording cannot be changed.")

    def down(self, drain_s: float = 30.0) -> None:
        raise UsageError("a recording cannot be changed.")

    def _join(self) -> list[int]:
        """Puts the frames' pieces of history together; how much of it each frame has seen."""
        ends, known, length = [], 0, 0
        for frame in self._frames:
            given = max((len(values) for values in frame.history.values()), default=0)
            new = frame.history_seq - known
            new = new if 0 <= new <= given else given
            for name, values in frame.history.items():
                mine = self._history.setdefault(name, [])
                mine += [0.0] * (length - len(mine))
                mine += values[len(values) - new :]
            known, length = frame.history_seq, length + new
            ends.append(length)
        return ends


def recording_head(label: str, interval_s: float, plan: dict[str, Any]) -> dict[str, Any]:
    return {"schema": RECORDING, "label": label, "interval_s": interval_s, "plan": plan}


def read_recording(path: Path) -> tuple[dict[str, Any], list[TopSnapshot]]:
    """The head (empty when there is none) and the frames, at least one."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError) as e:
        raise NotFoundError(
            f"{path} cannot be read: {e}.", "Give a file that --record wrote.", code="APL-NOT-018"
        ) from e
    head: dict[str, Any] = {}
    frames = []
    lines = [line for line in data.split(b"\n") if line]
    for number, line in enumerate(lines, 1):
        try:
            if number == 1 and (found := _head(line)):
                head = found
                continue
            frames.append(msgspec.json.decode(line, type=TopSnapshot))
        except (ValueError, AttributeError) as e:
            if frames and number == len(lines):
                break  # the recorder was stopped in the middle of a line
            raise UsageError(
                f"line {number} of {path} is no snapshot: {e}.",
                "Give a file that --record wrote, play it with the version that wrote it.",
            ) from e
    if not frames:
        raise UsageError(f"{path} holds no snapshot.", "Give a file that --record wrote.")
    return head, frames


def _head(line: bytes) -> dict[str, Any]:
    """Nothing when the line is a snapshot already. UsageError for a recording of another kind."""
    found = json.loads(line)
    schema = str(found.get("schema", ""))
    if schema == RECORDING:
        return dict(found)
    if schema.startswith(RECORDING.partition("/")[0]):
        raise UsageError(
            f"the recording is of schema {schema}; this version plays {RECORDING}.",
            "Play it with the version that wrote it.",
        )
    return {}
