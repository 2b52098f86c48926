"""Ctrl-C, heard wherever it comes.

Python makes SIGINT an exception of the main thread, and loses it where that thread runs a
finalizer, a weak reference's callback (each import has one) or code that swallows what it does not
know. So a thread hears of the signal by itself, looks whether the main thread is on its way out,
and interrupts it again until it is. Nothing but the standard library is loaded here.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

EXIT_CODE = 130

_LOOK_S = 0.02
_LOST_AFTER = 5
"""Looks in a row at a main thread that goes on as if nothing had happened."""
_ECHO_S = 0.3
"""A signal so soon after one that was sent from here is that one."""
_STUCK_S = 1.0
"""A main thread that does not come out of a call into C by then is left where it is."""
_SECOND_S = 0.2
"""What is under way may still end by itself after the second Ctrl-C."""


class Listener:
    """Hears SIGINT for as long as a command runs. One for each process, made by its main thread."""

    def __init__(self) -> None:
        self._main = threading.get_ident()
        self._terminal = _attributes()
        self._guard = threading.Lock()
        self._open = False
        """Whether a press waits for its command to end."""
        self._presses = 0
        self._pressed_s = 0.0
        self._sent_s = 0.0
        self._leave_s = float("inf")
        self._ear, mouth = os.pipe()
        for fd in (self._ear, mouth):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
        self._tell_lost, sys.unraisablehook = sys.unraisablehook, self._unraisable
        threading.Thread(target=self._listen, daemon=True, name="interrupt").start()

    def heard(self) -> None:
        """The command has taken the interrupt for its own, and goes on."""
        with self._guard:
            self._take()
            self._open, self._presses = False, 0

    def leave(self) -> NoReturn:
        """Ends an interrupted process: no thread, exit handler or full pipe can hold it up."""
        self._leave_s = time.monotonic() + _SECOND_S
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(EXIT_CODE)

    def _listen(self) -> None:
        lost = 0
        while True:
            wait = _LOOK_S if self._open else None
            select.select([self._ear], [], [], wait)
            with self._guard:
                self._count(self._take())
                again = self._open and not self._under_way()
            now = time.monotonic()
            if self._open and now > self._leave_s:
                self._force()
            if not again:
                lost = 0
                continue
            lost += 1
            if lost >= _LOST_AFTER:
                if now - self._pressed_s > _STUCK_S:
                    self._force()
                self._sent_s = now
                if not self._under_way():
                    signal.pthread_kill(self._main, signal.SIGINT)

    def _take(self) -> bool:
        """Whether SIGINT has come since the last time."""
        try:
            return signal.SIGINT in os.read(self._ear, 4096)
        except BlockingIOError:
            return False

    def _count(self, came: bool) -> None:
        now = time.monotonic()
        if not came or now - self._sent_s < _ECHO_S:
            return
        self._presses += 1
        if not self._open:
            self._open, self._pressed_s = True, now
        elif self._presses > 1:
            self._leave_s = min(self._leave_s, now + _SECOND_S)

    def _under_way(self) -> bool:
        """Whether the main thread is being unwound, or somebody else deals with the signal."""
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return True
        found: Any = sys._current_exceptions().get(self._main)
        error = found[1] if isinstance(found, tuple) else found
        for _ in range(100):
            if error is None or isinstance(error, KeyboardInterrupt):
                break
            error = error.__context__
        return error is not None

    def _unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        # an interrupt that Python drops here is sent again: nobody needs to read of it
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            self._tell_lost(lost)

    def _force(self) -> NoReturn:
        if self._terminal is not None:
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(0, termios.TCSANOW, self._terminal)
                os.write(2, b"\x1b[?25h\n")
        with contextlib.suppress(OSError):
            os.write(2, b"stopped by Ctrl-C\n")
        os._exit(EXIT_CODE)


_listeners: list[Listener] = []


def listener() -> Listener:
    """This process's, which begins to listen now if it has not yet."""
    if not _listeners:
        _listeners.append(Listener())
    return _listeners[0]


def heard() -> None:
    """To be called by a command that goes on after KeyboardInterrupt."""
    if _listeners:
        _listeners[0].heard()


def answering(command: Callable[[], int]) -> NoReturn:
    """Runs a command line and ends the process with its exit code."""
    ear = listener()
    if os.getpid() == 1:
        # the kernel keeps from a container's first process each signal that it has no handler for
        signal.signal(signal.SIGTERM, _end)
    try:
        code = command()
    except KeyboardInterrupt:
        code = EXIT_CODE
        sys.stderr.write("stopped by Ctrl-C\n")
    if code == EXIT_CODE:
        ear.leave()
    sys.exit(code)


def _end(number: int, frame: object) -> NoReturn:
    """As the kernel ends every other process."""
    os._exit(128 + number)


def _attributes() -> list[Any] | None:
    """How the terminal is set now; None without one."""
    try:
        return termios.tcgetattr(0) if os.isatty(2) else None
    except (OSError, termios.error):
        return None
