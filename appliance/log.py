"""One line format for every process: time, level, process name, request id, message."""

from __future__ import annotations

import logging
import sys
import time

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
