"""A command that loses its interrupt in one of the ways in which Python does: `interrupted.py WAY`.

It sends SIGINT to itself where that way loses it, and then waits as one that has heard nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import weakref
from typing import Any

from appliance.cli import interrupt


def interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        """Here Python looks for signals."""


class Dying:
    def __del__(self) -> None:
        interrupted()


class Key:
    def __hash__(self) -> int:
        interrupted()
        return 1


def in_a_finalizer() -> None:
    dying: Any = Dying()
    del dying


def in_a_callback() -> None:
    gone: Any = type("Gone", (), {})()
    kept = weakref.ref(gone, lambda _: interrupted())
    del gone
    assert kept() is None


def in_a_swallower() -> None:
    with contextlib.suppress(BaseException):
        interrupted()


def in_a_table_in_c() -> None:
    """As a type's form is looked up by msgspec: every error is taken for `not there`."""
    look = ctypes.pythonapi.PyDict_GetItem
    look.argtypes, look.restype = [ctypes.py_object, ctypes.py_object], ctypes.c_void_p
    assert look({}, Key()) is None


def in_a_call_without_end() -> None:
    c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    c.pthread_mutex_lock(mutex)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    c.pthread_mutex_lock(mutex)


def in_time_to_clean() -> None:
    """Nothing is lost here: what is done on the way out is not cut off."""
    try:
        interrupted()
    finally:
        threading.Event().wait(0.8)
        print("cleaned", flush=True)


def in_a_conversation() -> None:
    """An interrupt that ends something smaller than the command."""
    for _ in range(2):
        try:
            interrupted()
        except KeyboardInterrupt:
            interrupt.heard()
        threading.Event().wait(0.3)
    sys.exit(7)


def in_endless_cleaning() -> None:
    """Only a second press ends it."""
    try:
        interrupted()
    finally:
        print("cleaning", flush=True)
        c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
        c.pthread_mutex_lock(mutex)
        c.pthread_mutex_lock(mutex)


def command() -> int:
    globals()[sys.argv[1]]()
    threading.Event().wait(60)
    return 0


if __name__ == "__main__":
    interrupt.answering(command)
