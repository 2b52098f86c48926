"""Rows `host` and `idle`: an engine's own loop with 512 rows decoding, without HTTP.

    python -m benchmarks.engine_rows --model FOLDER [--rows 512] [--steps 200] [--append FILE]

host: microseconds a step in which the next step is chosen and its inputs are made, from the
counters that /metrics shows, over the steps in which all rows decode. idle: the share of the time
between the first and the last traced step in which the device had nothing to do, from a torch
trace. On a CPU the computing is done in launch, so what lies between two launches counts as idle.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from appliance.hardware import detect
from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig, ScheduleConfig
from appliance.runtime.engine.profile import TracingExecutor, span
from appliance.runtime.engine.rank import RankBuilder
from appliance.runtime.model.registry import read_spec
from appliance.runtime.plan import resolve
from appliance.runtime.schedule.loop import Loop
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.wire.channel import frame
from appliance.runtime.wire.delta import Deltas, StepStats, ToFrontend
from appliance.runtime.wire.request import Sampling, ToEngine, TokenRequest, ids_to_bytes
from benchmarks.serving import record

PEERS = 4
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_AROUND = 24
"""Steps of a traced run before its trace and behind it."""
HOST_GOAL_US, IDLE_GOAL = 300.0, 0.03


class Door:
    """Gives all requests at once, encodes what comes back as a socket would, keeps the stats."""

    def __init__(self, requests: list[TokenRequest]) -> None:
        self._waiting: list[tuple[int, ToEngine | None]] = [
            (request.rid % PEERS, request) for request in requests
        ]
        self._left = len(requests)
        self.stats: list[StepStats] = []
        self.loop: Loop | None = None

    def receive(self, timeout: float) -> list[tuple[int, ToEngine | None]]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def send(self, peer: int, message: ToFrontend) -> None:
        frame(message)
        if not isinstance(message, Deltas):
            return
        if message.stats is not None:
            self.stats.append(message.stats)
        self._left -= sum(bool(delta.finish) for delta in message.items)
        if not self._left and self.loop is not None:
            self.loop.stop()


def requests(rows: int, prompt: int, tokens: int, vocab: int) -> list[TokenRequest]:
    rng = np.random.default_rng(0)
    sampling = Sampling(max_tokens=tokens, temperature=0.0)
    return [
        TokenRequest(
            rid=rid,
            prompt=ids_to_bytes(rng.integers(3, vocab, prompt, dtype=np.int32)),
            sampling=sampling,
        )
        for rid in range(rows)
    ]


def config_of(given: argparse.Namespace, trace: bool) -> RuntimeConfig:
    folder = Path(given.model)
    spec = read_spec(folder)
    asked = RuntimeConfig(
        run="rows",
        dir=tempfile.gettempdir(),
        model=ModelConfig(
            path=str(folder), id="rows", load_format="dummy", quantization=given.quantization,
            context=max(256, given.prompt + given.steps + 64),
        ),
        schedule=ScheduleConfig(max_running=given.rows, prefix_cache=False),
        engine=EngineConfig(device=given.device, profile_steps=int(trace)),
    )  # fmt: skip
    return resolve(asked, spec, detect(), {}).config


def run(given: argparse.Namespace, trace: Path | None) -> list[StepStats]:
    """Serves all rows to their end; the stats that the loop told, ten a second."""
    config = config_of(given, trace is not None)
    spec = read_spec(Path(given.model))
    built = RankBuilder(config, spec, 0, 0, None, lambda *_: None).build()
    while (chore := built.executor.chore(busy=False)) is not None:
        chore()  # passes that are captured while it serves
    steps = given.traced if trace is not None else 0
    executor: Any = TracingExecutor(built.executor, steps, trace) if trace else built.executor
    rows = config.schedule.max_running
    scheduler = Scheduler(config.schedule, built.pages, config.model.context, rows, spec.vocab)
    tokens = steps + _AROUND if trace is not None else given.steps
    door = Door(requests(given.rows, given.prompt, tokens, spec.vocab))
    loop = Loop(scheduler, executor, door, config.schedule.depth, span=span if trace else None)
    door.loop = loop
    loop.run()
    built.executor.close()
    return door.stats


def host(stats: list[StepStats], rows: int) -> dict[str, float]:
    """Microseconds a step by phase, between the first and the last look at full decoding."""
    full = [s for s in stats if s.running == rows and not s.waiting]
    full = [s for s in full if s.prompt_tokens == full[-1].prompt_tokens]
    if len(full) < 2 or full[-1].steps == full[0].steps:
        raise SystemExit("Too few looks at full decoding: use more --steps.")
    first, last = full[0], full[-1]
    steps = last.steps - first.steps

    def each(name: str) -> float:
        a, b = (msgspec.structs.asdict(s)[name] for s in (first, last))
        return round((b - a) / steps * 1e6, 1)

    parts = {name: each(f"{name}_s") for name in ("schedule", "inputs", "launch", "wait", "settle")}
    whole = (last.time - first.time) / steps * 1e6
    return {
        "host_us": round(parts["schedule"] + parts["inputs"], 1),
        "step_us": round(whole, 1),
        "steps": steps,
        **{f"{name}_us": value for name, value in parts.items()},
    }


def idle(trace: Path) -> dict[str, Any]:
    """From the trace's complete events: times of the device, and where it had none."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    whole = [e for e in events if e.get("ph") == "X"]
    device = [e for e in whole if e.get("cat") in ON_DEVICE]
    busy = device or [e for e in whole if e["name"] == "launch"]
    spans = sorted((float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in busy)
    begin, end, used = spans[0][0], spans[0][1], 0.0
    at = begin
    for low, high in spans:
        used += max(0.0, high - max(low, at))
        at = max(at, high)
        end = max(end, high)
    steps = sum(e["name"] == "wait" for e in whole)
    return {
        "idle_share": round(1 - used / (end - begin), 5),
        "traced_ms": round((end - begin) / 1e3, 2),
        "step_us": round((end - begin) / max(1, steps), 1),
        "seen_on": "device" if device else "host: launches",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--which", choices=["host", "idle", "both"], default="both")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--traced", type=int, default=32)
    parser.add_argument("--append", type=Path)
    given = parser.parse_args()
    if given.which != "idle":
        figures: dict[str, Any] = host(run(given, None), given.rows)
        print(f"host: {figures}  goal ≤ {HOST_GOAL_US:g} µs", flush=True)
        if given.append:
            record(given.append, "host", figures, rows=given.rows)
        torch.cuda.empty_cache()
    if given.which != "host":
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json.gz"
            run(given, trace)
            figures = idle(trace)
        print(f"idle: {figures}  goal ≤ {IDLE_GOAL:.0%}", flush=True)
        if given.append:
            record(given.append, "idle", figures, rows=given.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
