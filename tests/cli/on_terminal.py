"""A program on a pseudo-terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_PATIENCE_S = 90.0
_COLOUR = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")


class OnTerminal:
    """Its lines and errors go to the terminal, which is also what it is told by."""

    def __init__(self, command: Sequence[str], columns: int, **env: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

        def take() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=take,
            env={**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **env},
        )  # fmt: skip
        os.close(slave)
        self.raw = ""

    @property
    def text(self) -> str:
        """All that was written, without colours and movements."""
        return _COLOUR.sub("", self.raw)

    def keys(self, text: str) -> None:
        os.write(self.master, text.encode())

    def sees(self, *wanted: str) -> str:
        """Waits until all of it has been written."""
        end = time.monotonic() + _PATIENCE_S
        while not all(word in self.text for word in wanted):
            if not self._read(end):
                raise AssertionError(f"{wanted} did not come before the end: {self.text[-3000:]}")
        return self.text

    def rest(self) -> str:
        """Everything until the end."""
        end = time.monotonic() + _PATIENCE_S
        while self._read(end):
            pass
        return self.text

    def left(self) -> int:
        """Its exit code, when it has ended."""
        self.rest()
        return self.process.wait(60)

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
def on_terminal(command: Sequence[str], columns: int = 110, **env: str) -> Iterator[OnTerminal]:
    terminal = OnTerminal(command, columns, **env)
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
