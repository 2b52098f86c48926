"""Carries out a plan: fetch in parallel, verify, name, remember; tells progress from the files.

Threads do the work and are never waited for when the pull is stopped: a part file is good at any
byte, and each is locked, so a thread that outlives its pull can do no harm.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from appliance.errors import DoesNotFitError
from appliance.hub.fetch import Fetcher, Transfer
from appliance.hub.manifest import Manifest
from appliance.hub.part import Stopped, cannot_store, verified
from appliance.hub.plan import Plan, check_disk, free_bytes, look, room_hint
from appliance.hub.source import Patience

_TICK_S = 0.1


@dataclass(frozen=True)
class Progress:
    """A pull's state at one moment."""

    total_bytes: int
    done_bytes: int
    """On the disk, this run's and earlier ones'; never goes back."""
    received_bytes: int
    """Over the network in this run."""
    active: tuple[Transfer, ...]
    waiting: bool = False
    """Another pull of the same model works; this one watches."""


@dataclass(frozen=True)
class Pulled:
    """A finished pull."""

    folder: Path
    received_bytes: int
    verified_files: int
    seconds: float


Tell = Callable[[Progress], None]


def carry_out(
    plan: Plan,
    patience: Patience,
    jobs: int,
    tell: Tell,
    *,
    max_rate: float = 0.0,
    read_all: bool = True,
) -> Pulled:
    """Leaves the model complete and verified in `plan.layout.folder`.

    max_rate: bytes a second; 0 is no limit. read_all: files that another tool left are read and
    compared with their digests; else their size is believed. What is fetched is always verified.

    Errors of `Fetcher.fetch`; DoesNotFitError before the first byte when the disk is too small.
    KeyboardInterrupt passes through at once; what came is kept.
    """
    start = time.monotonic()
    try:
        with _only_one(plan, tell):
            files = [t.file for t in plan.takes]
            now = replace(
                plan,
                takes=tuple(look(plan.layout, files)),
                free_bytes=free_bytes(plan.layout.cache),
            )
            check_disk(now)
            work = _Work(now, patience, max_rate, read_all)
            try:
                work.run(max(1, jobs), tell)
            except DoesNotFitError as e:
                raise work.in_words(e) from e
            finally:
                work.stop()
    except OSError as e:
        raise cannot_store(e, plan.layout.cache, "nothing more can be written") from e
    seconds = time.monotonic() - start
    return Pulled(plan.layout.folder, work.received_bytes, work.verified, seconds)


@contextmanager
def _only_one(plan: Plan, tell: Tell) -> Iterator[None]:
    """One pull of a model at a time; a second one shows the first one's progress and waits."""
    plan.layout.lock.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(plan.layout.lock)
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            seen = sum(t.have for t in look(plan.layout, [t.file for t in plan.takes]))
            tell(Progress(plan.total_bytes, seen, 0, (), waiting=True))
            time.sleep(2 * _TICK_S)
    try:
        yield
    finally:
        lock.release()


class _Work:
    """The transfers of one pull and the threads that carry them."""

    def __init__(self, plan: Plan, patience: Patience, max_rate: float, read_all: bool) -> None:
        self._plan = plan
        self._read_all = read_all
        self._stop = threading.Event()
        self._fetcher = Fetcher(patience, self._stop, max_rate=max_rate)
        self._manifest = Manifest.read(plan.listing.source, plan.listing.name)
        # Small files first: they say what the model is. Then the largest, so that none is last.
        order = sorted(plan.takes, key=lambda t: (t.file.size > 1 << 20, -t.file.size))
        self.transfers = [Transfer(t.file, done=t.have) for t in order]
        self._ended: queue.Queue[tuple[Transfer, BaseException | None]] = queue.Queue()
        self._todo: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        # Two listed files may be one body: equal bytes have one digest and one blob.
        self._bodies = {plan.layout.body(t.file): threading.Lock() for t in order}
        self._unsaved, self._saved_s = False, time.monotonic()
        self.verified = 0

    @property
    def received_bytes(self) -> int:
        return sum(t.received for t in self.transfers)

    def run(self, jobs: int, tell: Tell) -> None:
        plan, manifest = self._plan, self._manifest
        plan.layout.folder.mkdir(parents=True, exist_ok=True)
        manifest.start(plan.layout.folder, plan.listing, tuple(t.file for t in plan.takes))
        manifest.save()
        for transfer in self.transfers:
            self._todo.put(transfer)
        for i in range(min(jobs, len(self.transfers))):
            threading.Thread(target=self._carry, daemon=True, name=f"pull-{i}").start()
        left = len(self.transfers)
        while left:
            try:
                transfer, error = self._ended.get(timeout=_TICK_S)
            except queue.Empty:
                self._remember()
                tell(self._progress())
                continue
            if error is not None:
                raise error
            left -= 1
            self._keep(transfer)
        plan.layout.finish(plan.listing)
        manifest.snapshots[str(plan.layout.folder)].complete = True
        manifest.save()
        tell(self._progress())

    def stop(self) -> None:
        """Ends the threads as soon as they look; does not wait for them."""
        self._stop.set()
        self._fetcher.close()

    def _carry(self) -> None:
        while not self._stop.is_set():
            try:
                transfer = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                with self._bodies[self._plan.layout.body(transfer.file)]:
                    self._one(transfer)
            except Stopped:
                return
            except BaseException as e:
                self._ended.put((transfer, e))
                return
            self._ended.put((transfer, None))

    def _one(self, transfer: Transfer) -> None:
        """Leaves one file verified under its final name, and visible."""
        plan, file = self._plan, transfer.file
        present = plan.layout.present(file)
        if present is not None:
            transfer.state = "checking"
            # Other tools name files without looking at their bytes, so what we have not
            # verified ourselves is read once.
            known = not self._read_all or self._manifest.is_stamped(file, present)
            if known or verified(file, present, self._stop):
                transfer.state = "here"
                plan.layout.show(file)
                return
            present.resolve().unlink()
        request = plan.source.request(plan.listing, file)
        body = plan.layout.body(file)
        self._fetcher.fetch(request, file, plan.layout.part(file), body, transfer)
        plan.layout.show(file)

    def _keep(self, transfer: Transfer) -> None:
        body = self._plan.layout.present(transfer.file)
        if transfer.state == "here" and not self._read_all:
            return
        if body is not None and not self._manifest.is_stamped(transfer.file, body):
            self._manifest.stamp(transfer.file, body)
            self._unsaved = True
            self._remember()
            self.verified += 1
        elif transfer.state == "done":
            self.verified += 1

    def _remember(self) -> None:
        """Saves new stamps, once a second: a lost one only costs reading a file again."""
        now = time.monotonic()
        if self._unsaved and now - self._saved_s >= 1.0:
            self._manifest.save()
            self._unsaved, self._saved_s = False, now

    def _progress(self) -> Progress:
        active = tuple(t for t in self.transfers if t.state in ("checking", "fetching", "retrying"))
        return Progress(
            self._plan.total_bytes, sum(t.done for t in self.transfers), self.received_bytes, active
        )

    def in_words(self, full: DoesNotFitError) -> DoesNotFitError:
        """A full disk with what only the whole pull knows."""
        lacks = self._plan.total_bytes - sum(t.done for t in self.transfers)
        return DoesNotFitError(
            f"{full.message} The whole pull needs {lacks} more bytes.",
            f"{room_hint(self._plan.listing.name)}\nthen run the same command; it resumes.",
            code=full.code,
        )
