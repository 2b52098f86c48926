"""Draws a pull's progress on stderr: bars on a terminal, rare lines elsewhere, or NDJSON."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from typing import Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from appliance.cli.output import Output, duration, gigabytes
from appliance.hub import pull

Style = Literal["auto", "plain", "json", "none"]
_WINDOW_S = 10.0


class Drawing(Protocol):
    def show(self, p: pull.Progress) -> None: ...

    def close(self) -> None: ...


def drawing(style: Style, out: Output) -> Drawing:
    """`auto` is bars where they can be drawn and plain lines elsewhere."""
    if style == "json":
        return _Events()
    if style == "none" or out.quiet or not out.progress:
        return _Nothing()
    if style == "auto" and out.interactive():
        return _Bars()
    return _Lines()


class Rate:
    """Received bytes per second over the last ten seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, received: int, now: float) -> None:
        self._seen.append((now, received))
        while now - self._seen[0][0] > _WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()

    @property
    def bytes_per_s(self) -> float:
        if len(self._seen) < 2:
            return 0.0
        (t0, b0), (t1, b1) = self._seen[0], self._seen[-1]
        return (b1 - b0) / (t1 - t0) if t1 > t0 else 0.0


def told(p: pull.Progress, rate: float) -> str:
    """`7.3 GB/16.1 GB  412.0 MB/s  21s left`."""
    text = f"{gigabytes(p.done_bytes)}/{gigabytes(p.total_bytes)}"
    if p.waiting:
        return f"{text}  another pull of this model works; waiting for it"
    if rate > 0:
        left = (p.total_bytes - p.done_bytes) / rate
        text += f"  {rate / 1e6:.1f} MB/s  {duration(left)} left"
    return text


class _Nothing:
    def show(self, p: pull.Progress) -> None:
        """Nothing is drawn."""

    def close(self) -> None:
        """Nothing was drawn."""


class _Lines:
    """A line at every tenth part, and at most every 30 s; every retry and wait once."""

    def __init__(self) -> None:
        self._rate = Rate()
        self._last_s = time.monotonic()
        self._tenth: int | None = None
        self._said: set[str] = set()

    def show(self, p: pull.Progress) -> None:
        now = time.monotonic()
        self._rate.add(p.received_bytes, now)
        for t in p.active:
            if t.state == "retrying":
                self._once(f"{t.file.path}: {t.why}")
        if p.waiting:
            self._once(told(p, 0.0))
        tenth = 10 * p.done_bytes // max(1, p.total_bytes)
        if self._tenth is None:
            self._tenth = tenth
        if tenth > self._tenth and now - self._last_s >= 30.0:
            self._tenth, self._last_s = tenth, now
            print(told(p, self._rate.bytes_per_s), file=sys.stderr, flush=True)

    def _once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Lines stay."""


class _Events:
    """NDJSON, four objects a second at most."""

    def __init__(self) -> None:
        self._rate = Rate()
        self._last_s = 0.0

    def show(self, p: pull.Progress) -> None:
        now = time.monotonic()
        self._rate.add(p.received_bytes, now)
        if now - self._last_s < 0.25 and p.done_bytes < p.total_bytes:
            return
        self._last_s = now
        event = {
            "schema": "appliance.progress/1",
            "total_bytes": p.total_bytes,
            "done_bytes": p.done_bytes,
            "received_bytes": p.received_bytes,
            "rate_bytes_per_s": self._rate.bytes_per_s,
            "waiting": p.waiting,
            "files": [
                {
                    "path": t.file.path,
                    "state": t.state,
                    "done_bytes": t.done,
                    "size_bytes": t.file.size,
                    "why": t.why or None,
                }
                for t in p.active
            ],
        }
        print(json.dumps(event, ensure_ascii=False), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Every event is out already."""


class _Bars:
    """One bar for each active file and one for all of it; erased at the end."""

    def __init__(self) -> None:
        self._rate = Rate()
        self._bars = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[told]}", markup=False),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=8,
        )
        self._files: dict[str, TaskID] = {}
        self._total = self._bars.add_task("total", total=None, told="")
        self._bars.start()

    def show(self, p: pull.Progress) -> None:
        self._rate.add(p.received_bytes, time.monotonic())
        names = {t.file.path for t in p.active}
        for gone in set(self._files) - names:
            self._bars.remove_task(self._files.pop(gone))
        for t in p.active:
            size = f"{gigabytes(t.done)}/{gigabytes(t.file.size)}  {t.why}"
            if t.file.path not in self._files:
                name = t.file.path if len(t.file.path) <= 44 else "…" + t.file.path[-43:]
                self._files[t.file.path] = self._bars.add_task(name, total=t.file.size, told=size)
            self._bars.update(self._files[t.file.path], completed=t.done, told=size)
        self._bars.update(
            self._total,
            total=max(1, p.total_bytes),
            completed=p.done_bytes,
            told=told(p, self._rate.bytes_per_s),
        )

    def close(self) -> None:
        self._bars.stop()
