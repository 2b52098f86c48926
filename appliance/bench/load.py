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
from functools import partial
from time import perf_counter
from typing import Any

import msgspec

from appliance.bench.workload import Workload, check
from appliance.errors import ApplianceError, EngineError, UsageError

HEADER = struct.Struct("<I")
HEAD_START_S = 0.05


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
    """facts: what a child that serves itself tells of what it made ready."""

    facts: dict[str, Any] = {}


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    done: int
    failed: int


class Outcome(msgspec.Struct, frozen=True, tag="outcome"):
    records: list[Record]
    ended: float
    cpu_s: float


class Problem(msgspec.Struct, frozen=True, tag="problem"):
    """Nothing can be measured: an error of the appliance, in its own words."""

    message: str
    hint: str = ""
    exit_code: int = 1


SenderMessage = Prepared | Progress | Outcome | Problem


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
    if workload.duration_s and not (workload.rate or concurrency):
        raise UsageError(
            "All requests at once do not last for a duration.",
            "Add --max-concurrency or --request-rate, or leave --duration out.",
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
    senders = [await Child.start("sender", task, f"process {task.share}") for task in tasks]
    try:
        await asyncio.gather(*(sender.prepared() for sender in senders))
        start = perf_counter() + HEAD_START_S
        totals = [(0, 0)] * len(senders)

        def told(share: int, progress: Progress) -> None:
            totals[share] = (progress.done, progress.failed)
            if watch is not None:
                watch(sum(t[0] for t in totals), sum(t[1] for t in totals))

        outcomes = await asyncio.gather(
            *(s.finish(start, partial(told, i)) for i, s in enumerate(senders))
        )
    finally:
        for sender in senders:
            await sender.stop()
    return merged(outcomes, start)


def merged(outcomes: list[Outcome], start: float) -> Run:
    """All records as one process would have them: whatever is told is of every request."""
    records = sorted((r for o in outcomes for r in o.records), key=lambda record: record.index)
    end = max(outcome.ended for outcome in outcomes)
    return Run(records, start, end, sum(outcome.cpu_s for outcome in outcomes))


class Child:
    """The parent's end of a process that measures; its errors are those of `Problem`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._name, self._process = name, process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._decoder: msgspec.msgpack.Decoder[SenderMessage] = msgspec.msgpack.Decoder(
            SenderMessage
        )

    @classmethod
    async def start(cls, module: str, task: msgspec.Struct, name: str) -> Child:
        """module: of this room; it reads the task from its stdin."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            f"appliance.bench.{module}",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # a terminal's Ctrl-C is the parent's alone
        )
        child = cls(name, process)
        child._stdin.write(msgspec.json.encode(task) + b"\n")
        return child

    async def _next(self) -> SenderMessage:
        try:
            (size,) = HEADER.unpack(await self._stdout.readexactly(HEADER.size))
            message = self._decoder.decode(await self._stdout.readexactly(size))
        except asyncio.IncompleteReadError:
            code = await self._process.wait()
            raise EngineError(
                f"The measuring {self._name} ended early with exit code {code}.",
                "Its own message stands above.",
            ) from None
        if isinstance(message, Problem):
            kind = UsageError if message.exit_code == UsageError.exit_code else EngineError
            raise kind(message.message, message.hint)
        return message

    async def prepared(self) -> dict[str, Any]:
        """The child's facts, once it can begin."""
        message = await self._next()
        if not isinstance(message, Prepared):
            raise ApplianceError("A measuring process started before it was told to.")
        return message.facts

    async def finish(self, start: float, told: Callable[[Progress], None]) -> Outcome:
        """Tells it to begin at `start`."""
        self._stdin.write(f"{start!r}\n".encode())
        while not isinstance(message := await self._next(), Outcome):
            if isinstance(message, Progress):
                told(message)
        return message

    async def stop(self) -> None:
        self._stdin.close()
        if self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), 2)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
