"""A program on a pseudo-terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_PATIENCE_S = 90.0
_COLOUR = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")


class OnTerminal:
    """Its lines and errors go to the terminal, which is also what it is told by.

    controls: it is the process's controlling terminal, whose Ctrl-C and end are signals.
    """

    def __init__(
        self, command: Sequence[str], columns: int, rows: int, controls: bool, **env: str
    ) -> None:
        self.master, slave = pty.openpty()
        self._size(rows, columns)

        def take() -> None:
            if controls:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        # what pytest says of its own terminal would stand for the size of this one
        own = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=take,
            env={**own, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **env},
        )  # fmt: skip
        os.close(slave)
        self.raw = ""
        self._told = 0

    @property
    def text(self) -> str:
        """All that was written, without colours and movements."""
        return _COLOUR.sub("", self.raw)

    def keys(self, text: str) -> None:
        os.write(self.master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        self._size(rows, columns)
        self.process.send_signal(signal.SIGWINCH)

    def sees(self, *wanted: str) -> str:
        """Waits until all of it has been written, now or before; all the text."""
        self._wait(0, wanted)
        return self.text

    def news(self, *wanted: str) -> str:
        """What was written since the last call, raw, as soon as all the words are in it. Between
        the letters of a word there may be colours."""
        self._wait(self._told, wanted)
        found, self._told = self.raw[self._told :], len(self.raw)
        return found

    def rest(self) -> str:
        """Everything until the end, raw, that `news` has not told."""
        end = time.monotonic() + _PATIENCE_S
        while self._read(end):
            pass
        return self.raw[self._told :]

    def left(self) -> int:
        """Its exit code, when it has ended."""
        self.rest()
        return self.process.wait(60)

    def close(self) -> None:
        """Takes the terminal away."""
        os.close(self.master)
        self.master = -1

    def _wait(self, since: int, wanted: Sequence[str]) -> None:
        end = time.monotonic() + _PATIENCE_S
        while not all(word in _COLOUR.sub("", self.raw[since:]) for word in wanted):
            if not self._read(end):
                raise AssertionError(f"{wanted} did not come before the end: {self.text[-3000:]}")

    def _size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self, end: float) -> bool:
        if not select.select([self.master], [], [], max(0.0, end - time.monotonic()))[0]:
            raise AssertionError(f"nothing came; there is {self.text[-3000:]}")
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)


@contextmanager
def on_terminal(
    command: Sequence[str], columns: int = 110, rows: int = 40, *, controls: bool = True, **env: str
) -> Iterator[OnTerminal]:
    terminal = OnTerminal(command, columns, rows, controls, **env)
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
        terminal.process.wait()
        if terminal.master >= 0:
            terminal.close()
