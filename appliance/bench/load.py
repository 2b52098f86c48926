"""Sends a workload from several processes and brings back the time of every token.

The processes are started by command line (appliance.bench.sender), get their share as JSON on stdin
and answer with msgpack on stdout. They make ready first and start together.
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter

import msgspec

from appliance.bench.workload import Workload, check
from appliance.errors import ApplianceError, EngineError, UsageError

HEADER = struct.Struct("<I")
_HEAD_START_S = 0.05


class Task(msgspec.Struct, frozen=True):
    """What one sender does: share number ``share`` of ``of``."""

    workload: Workload
    url: str
    api_key: str
    share: int
    of: int
    concurrency: int
    """0: no limit."""
    timeout_s: float


class Record(msgspec.Struct, frozen=True):
    """What became of one request. Times in seconds of the machine's monotonic clock.

    start: just before the request was sent. times: float64 bytes, one time for each chunk that
    carried text. last: of the last chunk. error: empty when it was answered in full.
    """

    index: int
    start: float
    times: bytes
    last: float
    input_tokens: int
    output_tokens: int
    asked_tokens: int
    error: str = ""


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    pass


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    done: int
    failed: int


class Outcome(msgspec.Struct, frozen=True, tag="outcome"):
    records: list[Record]
    ended: float
    cpu_s: float


SenderMessage = Prepared | Progress | Outcome


class Run(msgspec.Struct, frozen=True):
    """A workload that was sent. start, end: monotonic seconds. cpu_s: of all senders together."""

    records: list[Record]
    start: float
    end: float
    cpu_s: float


Watcher = Callable[[int, int], None]
"""Called with the number of requests that are done, and that failed."""


def default_processes() -> int:
    return max(1, min(4, (os.cpu_count() or 2) // 2))


def run(
    workload: Workload,
    url: str,
    *,
    api_key: str = "",
    concurrency: int = 0,
    processes: int = 0,
    timeout_s: float = 1800.0,
    watch: Watcher | None = None,
) -> Run:
    """Sends everything and waits for the end.

    concurrency: requests under way at most (0: no limit), shared out over the processes.
    Failed requests are records with an error, never exceptions. Raises UsageError, EngineError.
    """
    check(workload)
    if concurrency < 0 or processes < 0 or timeout_s <= 0:
        raise UsageError(
            "Concurrency, processes and the timeout cannot be negative.", "Use 0 or more."
        )
    count = min(processes or default_processes(), workload.requests, concurrency or 1 << 30)
    tasks = [
        Task(
            workload,
            url,
            api_key,
            share,
            count,
            concurrency // count + (share < concurrency % count),
            timeout_s,
        )
        for share in range(count)
    ]
    return asyncio.run(_run(tasks, watch))


async def _run(tasks: list[Task], watch: Watcher | None) -> Run:
    senders = [await _Sender.start(task) for task in tasks]
    try:
        await asyncio.gather(*(sender.prepared() for sender in senders))
        start = perf_counter() + _HEAD_START_S
        totals = [(0, 0)] * len(senders)

        def told(share: int, progress: Progress) -> None:
            totals[share] = (progress.done, progress.failed)
            if watch is not None:
                watch(sum(t[0] for t in totals), sum(t[1] for t in totals))

        outcomes = await asyncio.gather(*(sender.finish(start, told) for sender in senders))
    finally:
        for sender in senders:
            await sender.stop()
    records = sorted((r for o in outcomes for r in o.records), key=lambda record: record.index)
    end = max(outcome.ended for outcome in outcomes)
    return Run(records, start, end, sum(outcome.cpu_s for outcome in outcomes))


class _Sender:
    """The parent's end of one sending process."""

    def __init__(self, task: Task, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._task, self._process = task, process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._decoder: msgspec.msgpack.Decoder[SenderMessage] = msgspec.msgpack.Decoder(
            SenderMessage
        )

    @classmethod
    async def start(cls, task: Task) -> _Sender:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "appliance.bench.sender",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        sender = cls(task, process)
        sender._stdin.write(msgspec.json.encode(task) + b"\n")
        return sender

    async def _next(self) -> SenderMessage:
        try:
            (size,) = HEADER.unpack(await self._stdout.readexactly(HEADER.size))
            return self._decoder.decode(await self._stdout.readexactly(size))
        except asyncio.IncompleteReadError:
            code = await self._process.wait()
            raise EngineError(
                f"Sending process {self._task.share} ended early with exit code {code}.",
                "Its own message stands above.",
            ) from None

    async def prepared(self) -> None:
        message = await self._next()
        if not isinstance(message, Prepared):
            raise ApplianceError("A sending process started before it was told to.")

    async def finish(self, start: float, told: Callable[[int, Progress], None]) -> Outcome:
        self._stdin.write(f"{start!r}\n".encode())
        while not isinstance(message := await self._next(), Outcome):
            if isinstance(message, Progress):
                told(self._task.share, message)
        return message

    async def stop(self) -> None:
        self._stdin.close()
        if self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), 2)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
