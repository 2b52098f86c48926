"""The run's log: every process's lines in one ring, one rotated file, and to those who follow."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from appliance.log import LineFormatter, rotated
from appliance.supervisor.log_writer import LogWriter

MAX_BYTES = 10 << 20
KEPT_FILES = 5
_LINE = re.compile(r"^(?P<at>\d{4}-\d\d-\d\dT[\d:.]+)Z (?P<level>\w+) +(?P<component>\S+) ")
_LEVELS = {"DEBUG": 0, "INFO": 1, "WARNING": 2, "ERROR": 3, "CRITICAL": 4}


class Line(Struct, frozen=True):
    """component: supervisor, frontend-0, engine-0, engine-0.1. level: index into _LEVELS.

    at: the time that the line, or the last one before it that has one, begins with.
    """

    component: str
    level: int
    text: str
    at: str = ""


class Filter(Struct, frozen=True):
    """component: a whole component or its first part (`engine`). level: that and worse.

    since, until: times as a line begins with, compared as text (`2026-11-20T12:00:01`); a line
    without a time is taken with the one before it. holds: texts that a line has, all of them.
    """

    component: str = ""
    level: str = ""
    since: str = ""
    until: str = ""
    holds: tuple[str, ...] = ()

    def takes(self, line: Line) -> bool:
        if not all(text in line.text for text in self.holds):
            return False
        if (self.since and line.at < self.since) or (self.until and line.at > self.until):
            return False
        if self.level and line.level < _LEVELS.get(self.level.upper(), 0):
            return False
        wanted, name = self.component, line.component
        return not wanted or name == wanted or name.startswith((wanted + "-", wanted + "."))


class LogBook:
    """Keeps lines as they come. A disk that is full or hangs costs the file, never the run."""

    def __init__(
        self,
        path: Path,
        *,
        lines: int = 5000,
        max_bytes: int = MAX_BYTES,
        echo: Callable[[Line], None] | None = None,
    ) -> None:
        self.path = path
        self._echo = echo
        self.ring: deque[Line] = deque(maxlen=lines)
        self._levels: dict[str, int] = {}
        self._followers: set[asyncio.Queue[Line | None]] = set()
        self.writer = LogWriter(path, max_bytes=max_bytes, kept=KEPT_FILES)

    def add(self, component: str, text: str) -> None:
        """A line of a process, kept as it is but for control characters.

        One that is not in the common format (a traceback, a library's print) has the level of
        the line before it.
        """
        clean = "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)
        match = _LINE.match(clean)
        level = _LEVELS.get(match["level"], 1) if match else self._levels.get(component, 1)
        self._levels[component] = level
        at = match["at"] if match else (self.ring[-1].at if self.ring else "")
        self._keep(Line(component, level, clean, at))

    def tail(self, count: int, wanted: Filter | None = None) -> list[Line]:
        """The last `count` lines that the filter takes, oldest first."""
        chosen = wanted or Filter()
        found: list[Line] = []
        for line in reversed(self.ring):
            if len(found) >= count:
                break
            if chosen.takes(line):
                found.append(line)
        return found[::-1]

    def follow(self) -> asyncio.Queue[Line | None]:
        """A queue of each new line; None at the end. A follower that does not read loses lines."""
        queue: asyncio.Queue[Line | None] = asyncio.Queue(1000)
        self._followers.add(queue)
        return queue

    def unfollow(self, queue: asyncio.Queue[Line | None]) -> None:
        self._followers.discard(queue)

    def close(self) -> None:
        for queue in self._followers:
            _offer(queue, None)
        self.writer.close()

    def _keep(self, line: Line) -> None:
        self.ring.append(line)
        if self._echo is not None:
            self._echo(line)
        for queue in self._followers:
            _offer(queue, line)
        self.writer.add(line.text.encode(errors="replace") + b"\n")


_PRIORITIES = (7, 6, 4, 3, 2)
"""syslog's, by level."""


def on_journal(fd: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether what is written to `fd` goes to systemd's journal."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        st = os.fstat(fd)
    except OSError:
        return False
    return (str(st.st_dev), str(st.st_ino)) == (device, inode)


def journal_text(line: Line) -> str:
    """A line as the journal wants it: its priority as `<N>`; the time and the level are the
    journal's own to show."""
    match = _LINE.match(line.text)
    said = f"{line.component} {line.text[match.end() :]}" if match else line.text
    return f"<{_PRIORITIES[line.level]}>{said}"


class LogHandler(logging.Handler):
    """The supervisor's own records, in the one format, into the book."""

    def __init__(self, book: LogBook) -> None:
        super().__init__()
        self._book = book
        self.setFormatter(LineFormatter("supervisor"))

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).split("\n"):
            self._book.add("supervisor", line)


def read_file(path: Path, count: int, wanted: Filter) -> list[str]:
    """The last `count` lines of a log, rotated files included, that the filter takes; for a run
    that has ended."""
    found: deque[str] = deque()
    for file in rotated(path):
        if len(found) >= count:
            break
        found.extendleft(reversed(_lines_of(file, wanted)))
    return list(found)[-count:] if count else []


def _lines_of(path: Path, wanted: Filter) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - MAX_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    found: list[str] = []
    component, level, at = "", 1, ""
    for text in lines:
        match = _LINE.match(text)
        if match:
            level, component = _LEVELS.get(match["level"], 1), match["component"]
            at = match["at"]
        if wanted.takes(Line(component, level, text, at)):
            found.append(text)
    return found


def _offer(queue: asyncio.Queue[Line | None], line: Line | None) -> None:
    if queue.full() and line is None:
        queue.get_nowait()
    if not queue.full():
        queue.put_nowait(line)
