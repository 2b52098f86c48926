"""Works on batches: examines, runs each line that has no answer yet, writes the files.

One frontend at a time holds a batch, by a lease that it renews; where it dies, another goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any

from appliance.errors import RequestError
from appliance.runtime.api.batches.calls import PRIORITY, Answered, Calls
from appliance.runtime.api.batches.input import Line, examine, offsets, read_line
from appliance.runtime.api.batches.outcome import Outcome, answer_line, expired_lines, write_files
from appliance.runtime.api.batches.records import BatchRecord, Fault, Status, new_id
from appliance.runtime.api.batches.store import Archive, Store, owner_name
from appliance.runtime.api.batches.turn import Turn
from appliance.runtime.api.callers import Caller
from appliance.runtime.api.errors import error_body

LOOK_S = 0.25
MOST_AT_ONCE = 8
SWEEP_S = 60.0
PATIENCE_S = 5.0

log = logging.getLogger(__name__)


class Worker:
    """endpoints: paths that a batch may be for."""

    def __init__(
        self, archive: Archive, calls: Calls, endpoints: tuple[str, ...], turn: Turn, index: int
    ) -> None:
        self._archive, self._calls, self._endpoints, self._turn = archive, calls, endpoints, turn
        self._owner = owner_name(index)
        self._jobs: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._woken = asyncio.Event()
        self._swept = 0.0

    def wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._turn.look()
            if self._archive.exists:
                try:
                    await self._look()
                except Exception:
                    log.exception("batches")
                    await asyncio.sleep(5 * LOOK_S)
            self._woken.clear()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def close(self) -> None:
        """Lines that run are given up; whoever comes next runs them."""
        tasks = [task for _, task in self._jobs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._archive.exists:
            await self._archive.do(Store.release, self._owner)

    async def _look(self) -> None:
        self._jobs = {id: (job, task) for id, (job, task) in self._jobs.items() if not task.done()}
        if time.monotonic() - self._swept > SWEEP_S:
            self._swept = time.monotonic()
            await self._archive.do(Store.sweep)
        if self._jobs:
            held = await self._archive.do(Store.beat, self._owner)
            for id, (job, task) in self._jobs.items():
                if task.done():
                    continue
                if id not in held:
                    log.warning("batch %s is worked on by another frontend", id)
                    task.cancel()
                elif held[id] == "cancelling":
                    await job.cancel()
        for record in await self._archive.do(
            Store.claim, self._owner, MOST_AT_ONCE - len(self._jobs)
        ):
            job = Job(self._archive, self._calls, self._endpoints, self._turn, record)
            self._jobs[record.id] = (job, asyncio.create_task(self._work(job)))

    async def _work(self, job: Job) -> None:
        try:
            await job.run()
        except Exception:
            log.exception("batch %s", job.id)
            await asyncio.sleep(PATIENCE_S)
            await self._archive.do(Store.release, self._owner, job.id)
        finally:
            self._woken.set()


class Job:
    """One batch from where it stands to its end."""

    def __init__(
        self,
        archive: Archive,
        calls: Calls,
        endpoints: tuple[str, ...],
        turn: Turn,
        record: BatchRecord,
    ) -> None:
        self._archive, self._calls, self._endpoints, self._turn = archive, calls, endpoints, turn
        self._record = record
        self.id = record.id
        self._input = archive.folder / "files" / record.input_file_id
        self._caller = account(record)
        self._stopped = asyncio.Event()
        self._broken: BaseException | None = None
        self._kept: set[int] = set()
        """Numbers of the lines whose answers are on their way to the store."""
        self._offsets: array[int] = array("q")
        self._left: deque[int] = deque()
        """Numbers of the lines without an answer that do not run."""
        self._running: set[asyncio.Task[None]] = set()

    async def cancel(self) -> None:
        await self._change(())

    async def run(self) -> None:
        try:
            if self._record.status == "validating":
                await self._examine()
            if self._record.status == "in_progress":
                await self._run_lines()
        except FileNotFoundError:
            await self._fail([Fault("input_file_gone", "The input file is no longer there.")])
        if self._record.status != "failed":
            await self._end()

    async def _fail(self, faults: Sequence[Fault]) -> None:
        log.info("batch %s is refused: %s", self.id, faults[0].message)
        await self._change(
            ("validating", "in_progress"),
            status="failed", failed_at=int(time.time()), errors=tuple(faults),
        )  # fmt: skip

    async def _examine(self) -> None:
        total, faults = await asyncio.to_thread(
            examine, self._input, self._record.endpoint, self._endpoints
        )
        if faults:
            await self._fail(faults)
        else:
            now = int(time.time())
            await self._change(
                ("validating",), status="in_progress", in_progress_at=now, total=total
            )

    async def _change(self, only_from: tuple[Status, ...], **fields: object) -> None:
        record = await self._archive.do(Store.change, self.id, only_from, **fields)
        if record is not None:
            self._record = record
            if record.status == "cancelling":
                self._stopped.set()

    # Lines

    async def _run_lines(self) -> None:
        await self._find_left()
        stopped = asyncio.create_task(self._stopped.wait())
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + self._record.expires_at - time.time()):
                while (self._left or self._running) and not self._stopped.is_set():
                    await self._start_or_wait(stopped)
        except TimeoutError:
            log.info("batch %s has expired", self.id)
        finally:
            stopped.cancel()
            running = list(self._running)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        if self._broken is not None:
            raise self._broken

    async def _find_left(self) -> None:
        self._offsets = await asyncio.to_thread(offsets, self._input)
        done = await self._archive.do(Store.answered, self.id)
        self._left = deque(n for n in range(len(self._offsets)) if n not in done)
        log.info("batch %s: %d lines to run, %d answered", self.id, len(self._left), len(done))

    async def _start_or_wait(self, stopped: asyncio.Task[bool]) -> None:
        """Starts one line when it is its turn; comes back when a line ends or the batch does."""
        waits: set[asyncio.Task[Any]] = {stopped, *self._running}
        turn = asyncio.create_task(self._turn.wait()) if self._left else None
        if turn is not None:
            waits.add(turn)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if turn is not None and turn.done() and not self._stopped.is_set():
                self._start(self._left.popleft())
        finally:
            if turn is not None:
                turn.cancel()

    def _start(self, number: int) -> None:
        task = asyncio.create_task(self._line(number))
        self._running.add(task)
        self._turn.begin(task)
        task.add_done_callback(lambda t: self._line_ended(t, number))

    def _line_ended(self, task: asyncio.Task[None], number: int) -> None:
        self._running.discard(task)
        if task.cancelled():
            if number not in self._kept:
                self._left.appendleft(number)
        elif (error := task.exception()) is not None:
            self._broken = error
            self._stopped.set()

    async def _line(self, number: int) -> None:
        line = await asyncio.to_thread(read_line, self._input, self._offsets[number])
        id = new_id("batch_req_")
        if line.body.get("stream"):
            answered = _refused("stream is not taken in a batch; leave it out.")
        else:
            answered = await self._ask(line, id)
        ok = answered.status == 200
        data = answer_line(id, line.custom_id, answered)
        self._kept.add(number)
        await asyncio.shield(self._archive.do(Store.put_lines, self.id, ok, [(number, data)]))

    async def _ask(self, line: Line, id: str) -> Answered:
        while True:
            answered = await self._calls.ask(line.url, line.body, id, self._caller)
            if answered.retry_after_s is None:
                return answered
            await asyncio.sleep(min(5.0, answered.retry_after_s))

    # The end

    async def _end(self) -> None:
        """Files are written under names that the record has already, so that writing them again
        after a death makes no further ones."""
        if self._record.output_file_id is None:
            names = {"output_file_id": new_id("file-"), "error_file_id": new_id("file-")}
            now = int(time.time())
            await self._change(("in_progress",), status="finalizing", finalizing_at=now, **names)
            await self._change(("cancelling",), **names)
        outcome = await self._outcome()
        files = await write_files(self._archive, self._record)
        written = {file.id for file in files}
        now = int(time.time())
        ended: dict[str, object] = {f"{outcome}_at": now}
        if self._record.output_file_id not in written:
            ended["output_file_id"] = None
        if self._record.error_file_id not in written:
            ended["error_file_id"] = None
        await self._archive.do(Store.finish, self.id, outcome, files, **ended)
        log.info("batch %s is %s", self.id, outcome)

    async def _outcome(self) -> Outcome:
        """Lines without an answer have expired, where nobody cancelled."""
        if self._record.status == "cancelling":
            return "cancelled"
        await self._find_left()
        if not self._left:
            return "completed"
        while self._left:
            numbers = [self._left.popleft() for _ in range(min(256, len(self._left)))]
            where = [self._offsets[n] for n in numbers]
            told = await asyncio.to_thread(expired_lines, self._input, where)
            await self._archive.do(
                Store.put_lines, self.id, False, list(zip(numbers, told, strict=True))
            )
        return "expired"


def account(record: BatchRecord) -> Caller:
    """The key's own part of the prefix cache, without its limits: those are for live traffic."""
    caller = Caller()
    caller.name, caller.namespace, caller.priority = record.key, record.namespace, PRIORITY
    return caller


def _refused(what: str) -> Answered:
    return Answered(400, error_body(RequestError(what, param="stream")), None)
