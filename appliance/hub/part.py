"""A file on its way: bytes, digest and durability, with nothing about where the bytes come from.

The final name exists only after the digest was checked and bytes and folder were synced.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from pathlib import Path
from types import TracebackType

from appliance.errors import ApplianceError, DoesNotFitError, IntegrityError
from appliance.hub.layout import sync_folder
from appliance.hub.source import RemoteFile

BLOCK = 4 << 20
_SYNC_EVERY = 128 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Stopped(Exception):
    """The pull was stopped from outside."""


class Digest:
    """The digest a hub lists for a file, taken while the bytes pass."""

    def __init__(self, file: RemoteFile) -> None:
        if file.algorithm == "git-sha1":
            self._hash = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        else:
            self._hash = hashlib.sha256()
        self._wanted = file.hex

    def update(self, block: bytes) -> None:
        self._hash.update(block)

    @property
    def matches(self) -> bool:
        return not self._wanted or self._hash.hexdigest() == self._wanted

    @property
    def hex(self) -> str:
        return self._hash.hexdigest()


def verified(file: RemoteFile, path: Path, stop: threading.Event) -> bool:
    """Reads a whole file and compares its digest with the listed one."""
    digest = Digest(file)
    with open(path, "rb", buffering=0) as f:
        while block := f.read(BLOCK):
            if stop.is_set():
                raise Stopped
            digest.update(block)
    return digest.matches


class Part:
    """The part file of one download, held by one writer at a time.

    Opening it reads what an earlier process left, so that the digest covers the whole file.
    """

    def __init__(self, file: RemoteFile, path: Path, stop: threading.Event) -> None:
        self.file = file
        self.path = path
        self.have = 0
        self._stop = stop
        self._unsynced = 0
        self._digest = Digest(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = self._hold()
        try:
            self._read_back()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def _hold(self) -> int:
        """The part file, open and ours alone, and still the one that bears the name."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    return fd
            except (BlockingIOError, FileNotFoundError):
                pass
            os.close(fd)
            if self._stop.wait(0.05):
                raise Stopped

    def _read_back(self) -> None:
        left = os.fstat(self._fd).st_size
        if left > self.file.size:
            os.ftruncate(self._fd, 0)
            return
        while self.have < left:
            if self._stop.is_set():
                raise Stopped
            block = os.pread(self._fd, BLOCK, self.have)
            if not block:
                break
            self._digest.update(block)
            self.have += len(block)

    def write(self, block: bytes) -> None:
        """Appends; DoesNotFitError when the disk is full. A short write is continued."""
        if self._stop.is_set():
            raise Stopped
        rest = block
        try:
            while rest:
                put = os.pwrite(self._fd, rest, self.have)
                self._digest.update(rest[:put])
                self.have += put
                self._unsynced += put
                rest = rest[put:]
        except OSError as e:
            raise self._cannot_store(e) from e
        if self._unsynced >= _SYNC_EVERY:
            self._sync()

    def restart(self) -> None:
        """Forgets all bytes: the hub sends, or must send, the file from its beginning."""
        os.ftruncate(self._fd, 0)
        self.have = 0
        self._digest = Digest(self.file)

    @property
    def whole(self) -> bool:
        return self.have == self.file.size

    @property
    def matches(self) -> bool:
        return self._digest.matches

    @property
    def hex(self) -> str:
        return self._digest.hex

    def publish(self, body: Path) -> None:
        """Gives verified bytes their final name, for good."""
        self._sync()
        body.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path, body)
        sync_folder(body.parent)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)

    def _sync(self) -> None:
        # A failed sync is never tried again: the kernel may have dropped the pages already.
        try:
            os.fsync(self._fd)
        except OSError as e:
            if e.errno in _FULL:
                raise self._cannot_store(e) from e
            self.discard()
            raise IntegrityError(
                f"the disk could not store {self.file.path}: {e.strerror or e}.",
                f"Check the disk that holds {self.path.parent}, then run the same command again.",
                code="APL-INT-003",
            ) from e
        self._unsynced = 0

    def _cannot_store(self, e: OSError) -> ApplianceError:
        lacks = self.file.size - self.have
        return cannot_store(e, self.path.parent, f"{self.file.path} lacks {lacks} more bytes")


def cannot_store(e: OSError, folder: Path, lacks: str) -> ApplianceError:
    """A failed write in the user's words."""
    if e.errno in _FULL:
        return DoesNotFitError(
            f"the disk that holds {folder} is full: {lacks}.",
            "Free some space and run the same command again; it resumes.",
            code="APL-FIT-010",
        )
    return ApplianceError(
        f"{e.filename or folder} cannot be written: {e.strerror or e}.",
        "Check the folder's owner and mount, or choose another: export HF_HOME=/path "
        "(MODELSCOPE_CACHE=/path)",
        code="APL-DSK-001",
    )
