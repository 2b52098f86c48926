"""One sending process: a Task as a JSON line on stdin, SenderMessages on stdout.

A second line on stdin is the time to start at; the end of stdin ends the process.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterable
from time import perf_counter, process_time

import msgspec
import uvloop

from appliance.bench.load import (
    HEADER,
    Outcome,
    Prepared,
    Progress,
    Record,
    SenderMessage,
    Task,
)
from appliance.bench.stream import BadResponse, Endpoint, ResponseReader
from appliance.bench.workload import Job, each_job, jobs

_PROGRESS_S = 0.5


def say(message: SenderMessage) -> None:
    body = msgspec.msgpack.encode(message)
    sys.stdout.buffer.write(HEADER.pack(len(body)) + body)
    sys.stdout.buffer.flush()


def _record(job: Job, start: float, reader: ResponseReader | None, problem: str) -> Record:
    if reader is None:
        return Record(job.index, start, b"", 0.0, job.input_len, 0, job.output_len, problem)
    usage = reader.usage
    error = problem or reader.error()
    if not error and not reader.last:
        error = "the answer was no stream of events"
    output = usage.completion_tokens if usage else job.output_len
    return Record(
        job.index,
        start,
        reader.times.tobytes(),
        reader.last,
        usage.prompt_tokens if usage else job.input_len,
        0 if error else output,
        job.output_len,
        error,
    )


async def send(endpoint: Endpoint, job: Job, timeout_s: float) -> Record:
    """One request from its first byte to the end of its answer; whatever fails is in the record."""
    start = perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            reader = await endpoint.post(job.path, job.body)
    except TimeoutError:
        return _record(job, start, None, f"no end of the answer within {timeout_s:g} s")
    except (OSError, BadResponse) as problem:
        return _record(job, start, None, f"{type(problem).__name__}: {problem}")
    return _record(job, start, reader, "")


class _Sending:
    """The requests of this process under way."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._endpoint = Endpoint(task.url, task.api_key)
        self._gate = asyncio.Semaphore(task.concurrency) if task.concurrency else None
        self.records: list[Record] = []
        self.failed = 0

    async def all(self, todo: Iterable[Job], start: float) -> None:
        telling = asyncio.create_task(self._tell())
        duration = self._task.workload.duration_s
        latest = start + duration if duration else float("inf")
        async with self._endpoint, asyncio.TaskGroup() as group:
            for job in todo:
                # again, because timers of whole milliseconds may end a little early
                while (wait := start + job.arrival - perf_counter()) > 0:
                    await asyncio.sleep(wait)
                if self._gate is not None:
                    await self._gate.acquire()
                if perf_counter() >= latest:
                    break
                group.create_task(self._one(job))
        telling.cancel()

    async def _one(self, job: Job) -> None:
        record = await send(self._endpoint, job, self._task.timeout_s)
        if self._gate is not None:
            self._gate.release()
        self.failed += bool(record.error)
        self.records.append(record)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            say(Progress(len(self.records), self.failed))


def end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, by closing stdin
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    # What a duration alone bounds is made when it is sent; all else beforehand.
    endless = task.workload.duration_s and not task.workload.rate
    make = each_job if endless else jobs
    todo = make(task.workload, task.share, task.of)
    say(Prepared())
    line = sys.stdin.buffer.readline()
    if not line:
        return
    threading.Thread(target=end_with_parent, daemon=True).start()
    # A collection would stand between a token and its time; a run makes few cycles.
    gc.freeze()
    gc.disable()
    before = process_time()

    async def run() -> list[Record]:
        sending = _Sending(task)
        await sending.all(todo, float(line))
        return sending.records

    records = uvloop.run(run())
    say(Outcome(records, perf_counter(), process_time() - before))


if __name__ == "__main__":
    main()
