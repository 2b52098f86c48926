"""Connections taken from a socket that several frontends share, so that each gets its part of them.

Whoever wakes first could take all that wait. So one that holds more than another leaves the next to
it, for a moment: then it takes some, because the other may be busy, or dead.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

BACKLOG = 2048
AT_ONCE = 8
"""Connections taken before the loop goes on with those that are there."""
LEAVE_S = 0.001
"""How long a connection is left to who holds fewer."""
LATE = 4
"""Connections that are then taken, whoever holds how many."""
FULL_S = 1.0
"""Until it is tried again when there is no file or memory for one more."""

log = logging.getLogger(__name__)


class Shares:
    """How many connections each frontend of a run holds, in a file that they share. A frontend
    writes its own number only, so no lock is needed; what it left when it died is cleared when its
    successor starts."""

    def __init__(self, path: Path, frontends: int, index: int) -> None:
        count = max(frontends, index + 1)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(handle, count * 8)
            shared = mmap.mmap(handle, count * 8)
        finally:
            os.close(handle)
        self._all: npt.NDArray[np.int64] = np.frombuffer(shared, dtype="<i8")
        self._index = index
        self._all[index] = 0

    def add(self, change: int) -> None:
        self._all[self._index] += change

    @property
    def held(self) -> int:
        return int(self._all[self._index])

    @property
    def ahead(self) -> bool:
        """Whether another holds fewer."""
        return bool(self._all[self._index] > self._all.min())


class Acceptor:
    """Makes a `protocol` for each connection that it takes. Whoever makes one tells `shares` when
    it is lost."""

    def __init__(
        self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol], shares: Shares
    ) -> None:
        self._listener, self._protocol, self._shares = listener, protocol, shares
        self._started = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._listener.setblocking(False)
        self._listener.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._readable)
        self._started = True

    def close(self) -> None:
        """Takes no more. What waits is for the others."""
        if self._timer is not None:
            self._timer.cancel()
        if self._started:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._started = False
        self._listener.close()

    def _readable(self) -> None:
        if self._shares.ahead:
            self._pause(LEAVE_S)
        else:
            self._take(AT_ONCE, fairly=True)

    def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self._timer = loop.call_later(seconds, self._again)

    def _again(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._readable)
        self._take(LATE, fairly=False)

    def _take(self, most: int, fairly: bool) -> None:
        for _ in range(most):
            try:
                taken, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:
                log.error("no connection can be taken: %s", e.strerror)
                self._pause(FULL_S)
                return
            taken.setblocking(False)
            self._shares.add(1)
            task = asyncio.get_running_loop().create_task(self._serve(taken))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if fairly and self._shares.ahead:
                return

    async def _serve(self, taken: socket.socket) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(self._protocol, taken)
        except OSError:  # its client has gone already
            self._shares.add(-1)
            taken.close()
