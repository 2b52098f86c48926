"""The engine's own process of `bench offline`: a task on stdin, messages on stdout. Torch is here.

The engine is loaded, one request is run, and then the whole workload is given to it at once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from array import array
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import msgspec

import appliance
from appliance.bench.files import conversations, usable
from appliance.bench.load import Outcome, Prepared, Problem, Progress, Record
from appliance.bench.offline import Inside
from appliance.bench.sender import end_with_parent, say
from appliance.bench.workload import Job, Prompt, Workload, jobs
from appliance.errors import ApplianceError, UsageError

_OF_THE_PROTOCOL = ("model", "prompt", "stream", "stream_options")


def asked(job: Job) -> tuple[Any, dict[str, Any]]:
    """(prompt, sampling) of the body that a server would get. Raises UsageError."""
    fields = msgspec.json.decode(job.body, type=dict[str, Any])
    if "messages" in fields:
        raise UsageError(
            "Messages need a server's chat completions.",
            "Use appliance bench serve, or a file of prompts.",
        )
    sampling = {k: v for k, v in fields.items() if k not in _OF_THE_PROTOCOL}
    return fields["prompt"], sampling


class _Pending:
    """One request and when its tokens came."""

    def __init__(self, engine: Any, job: Job) -> None:
        self.job = job
        self._stream = engine.stream(*asked(job))
        self._start = 0.0

    def begin(self) -> None:
        self._start = perf_counter()
        self._stream.begin()

    def finish(self) -> Record:
        """Waits for its end."""
        job, error = self.job, ""
        try:
            answer = self._stream.whole()
        except ApplianceError as problem:
            error, answer = problem.message, self._stream.answer
        times: array[float] = self._stream.times
        last = times[-1] if times else self._start
        return Record(
            job.index,
            self._start,
            times.tobytes(),
            last,
            answer.prompt_tokens,
            0 if error else len(answer.ids),
            job.output_len,
            error,
        )


def _counted(engine: Any, task: Inside) -> Workload:
    """The workload with the file's conversations, counted by the engine's tokenizer."""

    def length(text: str) -> int:
        found: int = engine.stream(text, {"max_tokens": 1}).answer.prompt_tokens
        return found

    wanted, prompts = task.workload.requests, []
    for question, answer in conversations(Path(task.sharegpt), task.workload.seed):
        output = length(answer)
        if usable(length(question), output):
            prompts.append(Prompt(output, text=question))
        if len(prompts) == wanted:
            return msgspec.structs.replace(task.workload, prompts=prompts)
    raise UsageError(
        f"{task.sharegpt} has {len(prompts)} conversations that can be used, "
        f"{wanted} were asked for.",
        f"Use --num-prompts {len(prompts)}.",
    )


def measure(engine: Any, todo: list[Job], start: float) -> Outcome:
    pending = [_Pending(engine, job) for job in todo]
    while (wait := start - perf_counter()) > 0:
        time.sleep(wait)
    before = process_time()
    for one in pending:
        one.begin()
    records, told = [], start
    for one in pending:
        records.append(one.finish())
        if perf_counter() - told > 0.5:
            told = perf_counter()
            say(Progress(len(records), sum(bool(r.error) for r in records)))
    ended = max([start, *(record.last for record in records)])
    return Outcome(records, ended, process_time() - before)


def main() -> None:
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Inside)
    os.environ.update(task.variables)
    began = perf_counter()
    try:
        engine: Any = appliance.Engine(task.folder, task.settings)
    except ApplianceError as problem:
        say(Problem(problem.message, problem.hint, problem.exit_code))
        return
    try:
        ready = perf_counter() - began
        workload = _counted(engine, task) if task.sharegpt else task.workload
        todo = jobs(workload)
        _Pending(engine, todo[0]).finish()
        engine.flush_cache()
        facts: dict[str, Any] = {
            "compile_s": sum(engine.facts.get(f, 0.0) for f in ("compile_s", "compile_chains_s")),
            "plain": engine.facts.get("plain", ""),
        }
        say(Prepared({"ready_s": ready, "pages": engine.pages, **facts}))
        line = sys.stdin.buffer.readline()
        if line:
            threading.Thread(target=end_with_parent, daemon=True).start()
            say(measure(engine, todo, float(line)))
    except ApplianceError as problem:
        say(Problem(problem.message, problem.hint, problem.exit_code))
    finally:
        engine.close()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # threads of torch's libraries would be waited for
