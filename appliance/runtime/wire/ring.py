"""Shared memory from rank 0 to an engine's other ranks: a ring of bytes, one writer, n readers.

Layout: int64 written (bytes ever written), then int64 read[n] on cache lines of their own, then
the data. A record is an int64 length and its bytes, padded to 8; a length of -1 says "go on at the
start". The counters only grow, and an aligned 8-byte store is one instruction on every machine
this runs on, so no lock is needed.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import numpy as np

from appliance.errors import EngineError

_LINE = 8  # int64s in a cache line
_SPINS = 2000


class _Ring:
    def __init__(self, path: Path, readers: int, capacity: int, create: bool) -> None:
        size = (1 + readers) * 64 + capacity
        flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if create else 0)
        fd = os.open(path, flags, 0o600)
        try:
            if create:
                os.ftruncate(fd, size)
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        words = np.frombuffer(self._map, dtype=np.int64)
        self._written = words[0:1]
        self._read = words[_LINE : _LINE * (1 + readers) : _LINE]
        self._data = memoryview(self._map)[(1 + readers) * 64 :]
        self._words = words[_LINE * (1 + readers) :]
        self._capacity = capacity


class RingWriter(_Ring):
    """Rank 0's end. capacity: bytes, a multiple of 8; one record may take half of it."""

    def __init__(self, path: Path, readers: int, capacity: int = 64 << 20) -> None:
        super().__init__(path, readers, capacity, create=True)

    def write(self, data: bytes, timeout: float = 60.0) -> None:
        """Waits while the slowest reader is a ring behind; EngineError after `timeout` seconds."""
        need = 8 + (len(data) + 7) // 8 * 8
        if need > self._capacity // 2:
            raise EngineError(f"a step of {len(data)} bytes is larger than the ring takes")
        at = int(self._written[0])
        offset = at % self._capacity
        skip = self._capacity - offset if self._capacity - offset < need + 8 else 0
        self._wait_for_room(at + skip + need, timeout)
        if skip:
            self._words[offset // 8] = -1
            at, offset = at + skip, 0
        self._words[offset // 8] = len(data)
        self._data[offset + 8 : offset + 8 + len(data)] = data
        self._written[0] = at + need

    def _wait_for_room(self, end: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while end - int(self._read.min()) > self._capacity:
            if time.monotonic() > deadline:
                raise EngineError("a rank has stopped reading its steps")
            time.sleep(50e-6)


class RingReader(_Ring):
    """Rank r's end, r ≥ 1."""

    def __init__(self, path: Path, readers: int, rank: int, capacity: int = 64 << 20) -> None:
        super().__init__(path, readers, capacity, create=False)
        self._index = rank - 1

    def read(self, timeout: float) -> bytes | None:
        """The next record, or None after `timeout` seconds. Spins a little, then sleeps."""
        at = int(self._read[self._index])
        spins, deadline = 0, time.monotonic() + timeout
        while int(self._written[0]) == at:
            spins += 1
            if spins > _SPINS:
                if time.monotonic() > deadline:
                    return None
                time.sleep(50e-6)
        offset = at % self._capacity
        length = int(self._words[offset // 8])
        if length < 0:
            at, offset = at + self._capacity - offset, 0
            length = int(self._words[0])
        data = bytes(self._data[offset + 8 : offset + 8 + length])
        self._read[self._index] = at + 8 + (length + 7) // 8 * 8
        return data
