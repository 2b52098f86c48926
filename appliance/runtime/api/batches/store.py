"""Files and batches on disk: one SQLite database and one folder of bytes, shared by the frontends.

Every change is one transaction, so that a process may die between any two of them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from appliance.errors import RequestError
from appliance.runtime.api.batches.records import BatchRecord, FileRecord, Status

LEASE_S = 10.0
LEFT_S = 24 * 3600
"""Nobody writes to a part that has not changed for so long."""
MAX_STORED = 8 << 30
MIN_FREE = 256 << 20
MAX_UNFINISHED = 256
_BUSY_S = 10.0
_VERSION = 1

_OPEN = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, purpose TEXT NOT NULL,
    key TEXT NOT NULL, bytes INTEGER NOT NULL, expires_at INTEGER, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, status TEXT NOT NULL,
    key TEXT NOT NULL, input_file_id TEXT NOT NULL, completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0, owner TEXT NOT NULL DEFAULT '',
    leased_until REAL NOT NULL DEFAULT 0, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS lines (
    batch TEXT NOT NULL, number INTEGER NOT NULL, ok INTEGER NOT NULL, answer BLOB NOT NULL,
    PRIMARY KEY (batch, number)) WITHOUT ROWID;
PRAGMA user_version = {version};
CREATE INDEX IF NOT EXISTS open_batches ON batches (seq) WHERE {open};
"""

P = ParamSpec("P")
T = TypeVar("T")


def owner_name(index: int) -> str:
    """Of this process, as a lease names it."""
    return f"{socket.gethostname()}/{os.getpid()}/{index}/{time.monotonic_ns()}"


def owner_is_gone(owner: str) -> bool:
    """Its process has ended. False where that cannot be known: then the lease runs out."""
    host, _, rest = owner.partition("/")
    pid = rest.partition("/")[0]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


class Store:
    """Belongs to one thread. Unknown ids are None."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "files").mkdir(mode=0o700, exist_ok=True)
        self._db = sqlite3.connect(folder / "batches.sqlite", timeout=_BUSY_S, isolation_level=None)
        self._prepare()

    def _prepare(self) -> None:
        """Two processes that make the database at once find each other's lock."""
        end = time.monotonic() + _BUSY_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                (version,) = self._db.execute("PRAGMA user_version").fetchone()
                if version not in (0, _VERSION):
                    raise _of_another_version(self.folder, version)
                self._db.executescript(_SCHEMA.format(open=_OPEN, version=_VERSION))
                return
            except sqlite3.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def close(self) -> None:
        self._db.close()

    def bytes_of(self, file: str) -> Path:
        """Where the bytes of a file lie."""
        return self.folder / "files" / file

    # Files

    def check_room(self, size: int) -> None:
        """RequestError when `size` more bytes should not be stored."""
        (stored,) = self._db.execute("SELECT coalesce(sum(bytes), 0) FROM files").fetchone()
        free = shutil.disk_usage(self.folder).free
        if stored + size <= MAX_STORED and free - size >= MIN_FREE:
            return
        what = f"{stored >> 20:,} MiB of files are kept, at most {MAX_STORED >> 20:,}"
        if stored + size <= MAX_STORED:
            what = f"the disk has {free >> 20:,} MiB left, of which {MIN_FREE >> 20} are kept free"
        raise RequestError(
            f"There is no room for a file of {size:,} bytes: {what}. Delete files that are no "
            "longer needed.",
            status=507,
            code="storage_full",
            param="file",
        )

    def add_file(self, record: FileRecord, source: Path) -> None:
        """Takes `source`, whose bytes are on disk, for its own."""
        os.replace(source, self.bytes_of(record.id))
        self._insert_file(record)

    def _insert_file(self, record: FileRecord) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO files (id, purpose, key, bytes, expires_at, record) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                record.id,
                record.purpose,
                record.key,
                record.bytes,
                record.expires_at,
                _packed(record),
            ),
        )

    def file(self, id: str) -> FileRecord | None:
        found = self._db.execute("SELECT record FROM files WHERE id = ?", (id,)).fetchone()
        return found and msgspec.json.decode(found[0], type=FileRecord)

    def files(
        self, key: str, purpose: str, after: str, limit: int, ascending: bool
    ) -> list[FileRecord]:
        """limit + 1 of them at most, so that the caller sees whether there are more. Empty key or
        purpose: any."""
        order, beyond = ("ASC", ">") if ascending else ("DESC", "<")
        rows = self._db.execute(
            "SELECT record FROM files WHERE (? = '' OR key = ?) AND (? = '' OR purpose = ?) "
            f"AND (? = '' OR seq {beyond} (SELECT seq FROM files WHERE id = ?)) "
            f"ORDER BY seq {order} LIMIT ?",
            (key, key, purpose, purpose, after, after, limit + 1),
        ).fetchall()
        return [msgspec.json.decode(r[0], type=FileRecord) for r in rows]

    def remove_file(self, id: str) -> bool:
        """False for an unknown one. RequestError while a batch reads it."""
        user = self._db.execute(
            f"SELECT id FROM batches WHERE input_file_id = ? AND {_OPEN}", (id,)
        ).fetchone()
        if user is not None:
            raise RequestError(
                f"The file {id!r} is read by the batch {user[0]!r}. Cancel that first.",
                status=409,
                code="file_in_use",
            )
        gone = self._db.execute("DELETE FROM files WHERE id = ?", (id,)).rowcount > 0
        if gone:
            self.bytes_of(id).unlink(missing_ok=True)
        return gone

    def sweep(self) -> None:
        """Removes files that have expired, and parts that a death left behind."""
        old = self._db.execute("SELECT id FROM files WHERE expires_at < ?", (int(time.time()),))
        for (id,) in old.fetchall():
            try:
                self.remove_file(id)
            except RequestError:
                continue
        for part in (self.folder / "files").glob("*.part"):
            if part.stat().st_mtime < time.time() - LEFT_S:
                part.unlink(missing_ok=True)

    # Batches

    def add_batch(self, record: BatchRecord) -> None:
        """RequestError when too many wait already."""
        (waiting,) = self._db.execute(f"SELECT count(*) FROM batches WHERE {_OPEN}").fetchone()
        if waiting >= MAX_UNFINISHED:
            raise RequestError(
                f"{waiting} batches have not ended; at most {MAX_UNFINISHED} are held.",
                status=429,
                type="rate_limit_error",
                code="too_many_batches",
                retry_after_s=60.0,
            )
        self._db.execute(
            "INSERT INTO batches (id, status, key, input_file_id, record) VALUES (?, ?, ?, ?, ?)",
            (record.id, record.status, record.key, record.input_file_id, _packed(record)),
        )

    def batch(self, id: str) -> BatchRecord | None:
        found = self._db.execute(
            "SELECT record, completed, failed FROM batches WHERE id = ?", (id,)
        ).fetchone()
        return found and _batch(found)

    def batches(self, key: str, after: str, limit: int) -> list[BatchRecord]:
        """Newest first; limit + 1 at most. Empty key: any."""
        rows = self._db.execute(
            "SELECT record, completed, failed FROM batches WHERE (? = '' OR key = ?) AND "
            "(? = '' OR seq < (SELECT seq FROM batches WHERE id = ?)) ORDER BY seq DESC LIMIT ?",
            (key, key, after, after, limit + 1),
        ).fetchall()
        return [_batch(row) for row in rows]

    def change(self, id: str, only_from: Sequence[Status], /, **fields: Any) -> BatchRecord | None:
        """The record afterwards; unchanged when its status is not one of `only_from`."""
        with _Transaction(self._db):
            record = self.batch(id)
            if record is None or record.status not in only_from:
                return record
            record = msgspec.structs.replace(record, **fields)
            self._db.execute(
                "UPDATE batches SET status = ?, record = ? WHERE id = ?",
                (record.status, _packed(record), id),
            )
        return record

    def finish(
        self, id: str, status: Status, files: Sequence[FileRecord], /, **fields: Any
    ) -> BatchRecord | None:
        """The end of a batch, with the files that hold its answers; those of lines are dropped."""
        with _Transaction(self._db):
            record = self.change(id, ("finalizing", "cancelling"), status=status, **fields)
            for file in files:
                self._insert_file(file)
            self._db.execute("UPDATE batches SET owner = '' WHERE id = ?", (id,))
            self._db.execute("DELETE FROM lines WHERE batch = ?", (id,))
        return record

    # Who works on a batch

    def claim(self, owner: str, most: int) -> list[BatchRecord]:
        """Takes up to `most` batches that nobody works on, those to be cancelled first."""
        if not self._unowned(owner):
            return []
        now = time.time()
        taken: list[BatchRecord] = []
        with _Transaction(self._db):
            for id in self._unowned(owner)[:most]:
                self._db.execute(
                    "UPDATE batches SET owner = ?, leased_until = ? WHERE id = ?",
                    (owner, now + LEASE_S, id),
                )
                record = self.batch(id)
                assert record is not None
                taken.append(record)
        return taken

    def _unowned(self, owner: str) -> list[str]:
        now = time.time()
        rows = self._db.execute(
            f"SELECT id, owner, leased_until FROM batches WHERE {_OPEN} AND owner != ? "
            "ORDER BY status != 'cancelling', seq",
            (owner,),
        ).fetchall()
        return [
            id for id, other, until in rows if not other or until <= now or owner_is_gone(other)
        ]

    def beat(self, owner: str) -> dict[str, Status]:
        """Keeps the owner's leases; the status of each batch that is still its own."""
        self._db.execute(
            "UPDATE batches SET leased_until = ? WHERE owner = ?", (time.time() + LEASE_S, owner)
        )
        return dict(
            self._db.execute("SELECT id, status FROM batches WHERE owner = ?", (owner,)).fetchall()
        )

    def release(self, owner: str, id: str = "") -> None:
        """One batch, or all that it holds."""
        self._db.execute(
            "UPDATE batches SET owner = '' WHERE owner = ? AND (? = '' OR id = ?)", (owner, id, id)
        )

    # Answers of lines

    def answered(self, batch: str) -> set[int]:
        rows = self._db.execute("SELECT number FROM lines WHERE batch = ?", (batch,))
        return {number for (number,) in rows}

    def put_lines(self, batch: str, ok: bool, answers: Sequence[tuple[int, bytes]]) -> None:
        """(number, answer) of lines that all went well or all did not. A line's first answer
        stays."""
        column = "completed" if ok else "failed"
        with _Transaction(self._db):
            fresh = self._db.executemany(
                "INSERT OR IGNORE INTO lines VALUES (?, ?, ?, ?)",
                [(batch, number, ok, answer) for number, answer in answers],
            ).rowcount
            self._db.execute(
                f"UPDATE batches SET {column} = {column} + ? WHERE id = ?", (fresh, batch)
            )

    def lines(self, batch: str, after: int, most: int) -> list[tuple[int, bool, bytes]]:
        """(number, ok, answer) in the order of the input."""
        return self._db.execute(
            "SELECT number, ok, answer FROM lines WHERE batch = ? AND number > ? "
            "ORDER BY number LIMIT ?",
            (batch, after, most),
        ).fetchall()


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT; inside of another one it is a part of that."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._outer = not db.in_transaction

    def __enter__(self) -> None:
        if self._outer:
            self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._outer:
            self._db.execute("COMMIT" if kind is None else "ROLLBACK")


class Archive:
    """The store behind one thread, for the event loop. Nothing is made on disk before its use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._store: Store | None = None

    @property
    def exists(self) -> bool:
        return (self.folder / "batches.sqlite").exists()

    async def do(
        self, work: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Calls a method of the store in its thread."""

        def call() -> T:
            if self._store is None:
                self._store = Store(self.folder)
            return work(self._store, *args, **kwargs)

        return await asyncio.wrap_future(self._thread.submit(call))

    def close(self) -> None:
        if self._store is not None:
            self._thread.submit(self._store.close)
        self._thread.shutdown()


def _of_another_version(folder: Path, version: int) -> RequestError:
    return RequestError(
        f"The files and batches of this server were kept by another version of it ({version}, this "
        f"one reads {_VERSION}). Move the folder {folder} away, or start that version again.",
        status=500,
        type="server_error",
        code="stored_by_another_version",
    )


def _packed(record: FileRecord | BatchRecord) -> bytes:
    return msgspec.json.encode(record)


def _batch(row: tuple[bytes, int, int]) -> BatchRecord:
    record = msgspec.json.decode(row[0], type=BatchRecord)
    return msgspec.structs.replace(record, completed=row[1], failed=row[2])
