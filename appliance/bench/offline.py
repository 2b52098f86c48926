"""Throughput of the engine in a process of its own, without HTTP: same workloads, same figures."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

import msgspec

from appliance.bench.load import HEAD_START_S, Child, Progress, Run, Watcher, merged
from appliance.bench.workload import Workload, check
from appliance.errors import UsageError


class Inside(msgspec.Struct, frozen=True):
    """What the child does. folder: of the model. settings: dotted RuntimeConfig fields.

    variables: of its environment, for compilers that are loaded with the engine. sharegpt: a file
    whose conversations become the workload's prompts, counted by the model's own tokenizer; empty
    when the workload has its own.
    """

    workload: Workload
    folder: str
    settings: dict[str, Any] = {}
    variables: dict[str, str] = {}
    sharegpt: str = ""


def run(task: Inside, watch: Watcher | None = None) -> tuple[Run, dict[str, Any]]:
    """Sends everything at once. (the run, facts of the engine such as ready_s and pages).

    Raises UsageError, EngineError.
    """
    workload = task.workload
    if workload.rate or workload.duration_s or workload.api != "openai":
        raise UsageError(
            "In one process all prompts are given at once, as completions.",
            "Leave rate, duration and API out, or measure a server: appliance bench serve.",
        )
    if not task.sharegpt:
        check(workload)
    return asyncio.run(_run(task, watch))


def ready(task: Inside) -> dict[str, Any]:
    """Loads the engine, answers one request and ends it: the engine's facts.

    Raises UsageError, EngineError.
    """
    return asyncio.run(_ready(task))


async def _ready(task: Inside) -> dict[str, Any]:
    child = await Child.start("inside", task, "engine")
    try:
        return await child.prepared()
    finally:
        await child.stop()


async def _run(task: Inside, watch: Watcher | None) -> tuple[Run, dict[str, Any]]:
    child = await Child.start("inside", task, "engine")

    def told(progress: Progress) -> None:
        if watch is not None:
            watch(progress.done, progress.failed)

    try:
        facts = await child.prepared()
        start = perf_counter() + HEAD_START_S
        outcome = await child.finish(start, told)
    finally:
        await child.stop()
    return merged([outcome], start), facts
