"""The weight files of a model's folder, and their way into memory before torch is there."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import DamagedError, IntegrityError, NotFoundError

CORES_EACH, THREADS = 4, 4
"""Cores to one thread that reads ahead, and how many of those at most: on two cores it slowed what
it was to help, a start from a cold disk from 7.0 to 8.7 seconds."""
BLOCK = 8 << 20
"""Bytes read at a time: enough for a disk's full rate, few enough to be in a core's cache."""
ROOM = 0.7
"""Share of the free memory that weights may take on their way; with less, what was read first would
have gone when it is wanted."""


def files_of(folder: Path) -> list[Path]:
    """The safetensors of a model. NotFoundError when there are none, or one of them is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as e:
            raise DamagedError(f"{index} is not an index of safetensors files.") from e
        if any("/" in n or "\\" in n or n.startswith(".") for n in names):
            raise IntegrityError(f"{index} names files outside of its folder.", code="APL-INT-002")
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise NotFoundError(
                f"{folder} lacks {len(missing)} of {len(names)} weight files: {missing[0]} …",
                "Run the same `appliance pull` again: it fetches what is missing.",
                code="APL-NOT-008",
            )
        return [folder / n for n in names]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise NotFoundError(
            f"{folder} holds no safetensors file.",
            "Only safetensors are loaded; convert other formats first.",
            code="APL-NOT-006",
        )
    return found


class ReadAhead:
    """Reads what of a model's files is not in memory yet, from its making on, in threads of its
    own: a process needs seconds to load its libraries, in which a disk would wait. The kernel keeps
    what is read.

    free: bytes of memory that nobody uses. cores: of the machine; with few it does nothing. rank,
    ranks: processes that share both. bytes: read so far.
    """

    def __init__(self, folder: Path, free: int, cores: int, rank: int = 0, ranks: int = 1) -> None:
        self.bytes = 0
        self._lock = threading.Lock()
        self._blocks = _missing(folder, free, rank, ranks)
        self._threads = [
            threading.Thread(target=self._read, name="read-ahead", daemon=True)
            for _ in range(min(THREADS, cores // (CORES_EACH * ranks)))
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _next(self) -> tuple[Path, int] | None:
        with self._lock:
            return next(self._blocks, None)

    def _read(self) -> None:
        room = bytearray(BLOCK)
        while block := self._next():
            path, at = block
            try:
                with path.open("rb", buffering=0) as file:
                    read = os.preadv(file.fileno(), [room], at)
            except OSError:
                return  # whoever needs it says why it cannot be read
            with self._lock:
                self.bytes += read


def _missing(folder: Path, free: int, rank: int, ranks: int) -> Iterator[tuple[Path, int]]:
    """This rank's blocks that are not in memory, in the order in which they are loaded."""
    try:
        files = files_of(folder)
        if sum(path.stat().st_size for path in files) > ROOM * free:
            return
        for number, path in enumerate(files):
            for at in range(0, path.stat().st_size, BLOCK):
                if (number + at // BLOCK) % ranks == rank and not resident(path, at, BLOCK):
                    yield path, at
    except (DamagedError, IntegrityError, NotFoundError, OSError):
        return  # loading tells what is wrong with them


def resident(path: Path, at: int, size: int) -> bool:
    """Whether all of these bytes of a file are in memory. at: a multiple of a page. OSError."""
    with path.open("rb") as file:
        size = min(size, os.fstat(file.fileno()).st_size - at)
        if size <= 0:
            return True
        # a private mapping that may be written, for only such a one tells its address
        with mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, offset=at) as mapped:
            first = ctypes.c_char.from_buffer(mapped)
            pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
            address, length = ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size)
            failed = ctypes.CDLL(None, use_errno=True).mincore(address, length, pages)
            del first  # or the mapping could not be given up
            if failed:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
            return b"\0" not in pages.raw
