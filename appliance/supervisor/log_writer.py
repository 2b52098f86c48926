"""Lines to the run's log file by a thread: a disk that is slow, hangs or is full costs lines, which
are counted, never the run's time."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from pathlib import Path

from appliance.log import LineFormatter, RotatingFile

MAX_WAITING = 20_000
"""Lines that wait for the disk."""
MAX_WAITING_BYTES = 16 << 20
CLOSE_S = 2.0


class LogWriter:
    """path: of the file that is written now. Where lines are missing, the file says how many."""

    def __init__(
        self, path: Path, *, max_bytes: int, kept: int, max_waiting: int = MAX_WAITING
    ) -> None:
        self.path = path
        self._file = RotatingFile(path, max_bytes=max_bytes, kept=kept)
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[int, bytes]] = deque()  # dropped before it, the line
        self._waiting_bytes = 0
        self._writing_since = 0.0  # monotonic; 0: the disk owes nothing
        self._dropped = 0
        self._noted = 0  # of those, what the file says is missing
        self._gap = 0  # dropped since the last line that found room
        self._news = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def add(self, line: bytes) -> None:
        """Takes a whole line with its end; returns at once."""
        with self._news:
            bytes_then = self._waiting_bytes + len(line)
            full = len(self._waiting) >= self._max_waiting or bytes_then > MAX_WAITING_BYTES
            if full or self._closing:
                self._dropped += 1
                self._gap += 1
                return
            self._waiting.append((self._gap, line))
            self._gap = 0
            self._waiting_bytes = bytes_then
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
                self._thread.start()
            self._news.notify_all()

    @property
    def dropped(self) -> int:
        """Lines that are not in the file and will not be, since the start."""
        return self._dropped

    @property
    def missing(self) -> int:
        """Those of them that the file does not tell of yet: what is wrong now."""
        return self._dropped - self._noted

    def stuck_s(self) -> float:
        """Seconds for which the disk has not answered; 0 when nothing is asked of it."""
        since = self._writing_since
        return time.monotonic() - since if since else 0.0

    def written(self, limit_s: float) -> bool:
        """Waits until nothing waits for the disk. False when time is up."""
        with self._news:
            return self._news.wait_for(
                lambda: not self._waiting and not self._writing_since, limit_s
            )

    def close(self) -> None:
        """Writes what waits, as far as the disk lets us within a moment."""
        with self._news:
            self._closing = True
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        refused = 0  # by the disk, and not yet told of in the file
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    break
                gap, line = self._waiting.popleft()
                self._waiting_bytes -= len(line)
                self._writing_since = time.monotonic()
            written = self._write(line, refused + gap)
            with self._news:
                self._writing_since = 0.0
                if written:
                    self._noted += refused + gap
                    refused = 0
                else:
                    self._dropped += 1
                    refused += gap + 1
                self._news.notify_all()
        self._write(b"", refused + self._gap)
        self._file.close()

    def _write(self, line: bytes, missing: int) -> bool:
        try:
            if missing or line:
                self._file.write((_note(missing) if missing else b"") + line)
        except OSError:
            return False
        return True


def _note(missing: int) -> bytes:
    """What stands where lines are missing."""
    text = f"the log file can be written again; {missing} line(s) are missing here"
    record = logging.LogRecord("appliance.supervisor", logging.WARNING, "", 0, text, None, None)
    return LineFormatter("supervisor").format(record).encode() + b"\n"
