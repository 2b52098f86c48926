"""One line format for every process: time, level, process name, request id, message. And files of
lines that do not grow without end."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from pathlib import Path

_RESERVED = set(vars(logging.makeLogRecord({})))


class LineFormatter(logging.Formatter):
    """`2026-11-20T12:00:01.123Z INFO  engine-0 message key=value`.

    Control characters are escaped, so that one event is always one line.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = record.getMessage()
        extra = {k: v for k, v in vars(record).items() if k not in _RESERVED}
        if extra:
            text += "".join(f" {k}={v}" for k, v in extra.items())
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        lines = [
            "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in line)
            for line in text.split("\n")
        ]
        head = f"{stamp}.{int(record.msecs):03d}Z {record.levelname:<7} {self.process} "
        return head + "\n    ".join(lines)


def setup(process: str, level: str = "info") -> None:
    """Sends every logger of this process to stderr in the one format."""
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(LineFormatter(process))
    root.addHandler(stream)
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "urllib3", "filelock", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class RotatingFile:
    """Lines in `path`; a full file becomes `path.1`, which becomes `path.2`, up to `path.KEPT`.

    No file is longer than `max_bytes`, but for one line that is longer by itself. Each line is
    whole or not there, and lies in one file.
    """

    def __init__(self, path: Path, *, max_bytes: int, kept: int) -> None:
        self.path = path
        self._max_bytes, self._kept = max_bytes, kept
        self._fd = -1
        self._size = 0

    def write(self, lines: bytes) -> None:
        """Appends whole lines, all of them or none. OSError when the disk refuses."""
        if self._fd < 0:
            self._open()
        if self._size and self._size + len(lines) > self._max_bytes:
            self._rotate()
        view = memoryview(lines)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            if len(view) < len(lines):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(lines)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self.path, flags, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        for n in range(self._kept - 1, 0, -1):
            older = _numbered(self.path, n)
            if older.exists():
                older.replace(_numbered(self.path, n + 1))
        if self._kept and self.path.exists():
            self.path.replace(_numbered(self.path, 1))
        elif not self._kept:
            self.path.unlink(missing_ok=True)
        self.close()
        self._open()


def rotated(path: Path) -> list[Path]:
    """The files that `path` was rotated into and itself, newest first; those that are there."""
    numbers = [
        int(found[1])
        for other in path.parent.glob(f"{path.name}.*")
        if (found := re.fullmatch(re.escape(path.name) + r"\.(\d+)", other.name))
    ]
    own = [path] if path.exists() else []
    return own + [_numbered(path, n) for n in sorted(numbers)]


def _numbered(path: Path, n: int) -> Path:
    return path.with_name(f"{path.name}.{n}")
