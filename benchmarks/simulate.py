"""The real scheduler on a virtual clock: what a policy would bring, in seconds and without a GPU.

python benchmarks/simulate.py [--load sharegpt mid long poisson8 poisson16] [--weights bf16 fp8]
    [--asked 4096 [--seen 1500]] [--set chunk=2048 max_running=2048 ...] [--timeline 0.5]

Every figure is simulated: the time of a step comes from a model of one H100 serving the
Llama-3.1-8B shape, fitted to measured matmuls and to measured steps. The order of the loop is that
of schedule/loop.py with one flight in the air, and steps beside it.
"""

from __future__ import annotations

import argparse
import math
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.bench.workload import Workload, arrivals, lengths
from appliance.runtime.config import ScheduleConfig
from appliance.runtime.plan import graph_sizes
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.wire.request import Sampling, TokenRequest, ids_to_bytes
from appliance.runtime.wire.step import Step, StepResult

LAYERS, KV_BYTES, VOCAB, CONTEXT = 32, 131_072, 128_256, 131_072
STOP = 2
START_S = 0.5
"""From the first request's sending to the first step: what arrives meanwhile is there at once."""
SLOWER_DECODE, SLOWER_PREFILL = 2.0, 1.45
"""What a decode step and a prefill take beside each other, of what they take alone: by the rates of
the In[512,1024] row while both were at work."""
HOST_S, HOST_PREFILL_S = 0.0012, 0.0025
"""Of the host in a step before it is launched; hidden behind the flight in the air."""

LOADS = {
    "sharegpt": Workload("sharegpt-like", 2000, "m"),
    "mid": Workload("range:512-1024,128-512", 600, "m"),
    "long": Workload("range:2048-4096,256-512", 300, "m"),
    "alike": Workload("range:100-200,900-1024", 900, "m"),
    "apart": Workload("range:300-600,10-1500", 1000, "m"),
    "poisson8": Workload("sharegpt-like", 240, "m", rate=8.0),
    "poisson16": Workload("sharegpt-like", 480, "m", rate=16.0),
}

# Rows -> microseconds of the four matmuls of one layer, measured on an H100 (2026-11-21). Above
# 1024 rows they are those of the whole steps, a few percent below matmuls timed back to back.
BF16 = {
    8: 166.8, 16: 168.3, 32: 169.1, 64: 172.1, 80: 176.5, 96: 179.4, 112: 180.6, 128: 181.9,
    144: 185.5, 160: 188.2, 176: 190.9, 192: 192.0, 208: 195.1, 224: 204.8, 240: 203.2,
    256: 205.8, 272: 224.0, 288: 253.2, 304: 226.8, 320: 231.5, 336: 258.8, 352: 266.3,
    368: 245.5, 384: 264.4, 400: 343.1, 416: 311.2, 432: 276.4, 448: 440.3, 464: 302.0,
    480: 303.5, 496: 302.5, 512: 305.4, 528: 342.1, 544: 359.0, 576: 366.9, 608: 375.4,
    640: 384.7, 672: 479.7, 704: 474.3, 736: 461.4, 768: 468.0, 800: 505.3, 832: 622.8,
    864: 567.2, 896: 581.8, 928: 559.2, 960: 583.7, 992: 626.2, 1024: 623.7, 1056: 690.0,
    1088: 680.0, 1280: 740.0, 1536: 920.0, 2048: 1125.0, 4096: 2310.0, 8192: 4720.0,
}  # fmt: skip
FP8 = {
    16: 123.5, 32: 115.4, 64: 117.2, 96: 115.6, 128: 116.5, 160: 123.3, 192: 124.3, 224: 125.5,
    256: 126.5, 288: 151.5, 320: 151.0, 352: 152.2, 384: 153.5, 400: 220.0, 416: 210.2,
    448: 189.9, 480: 176.4, 512: 170.7, 640: 239.1, 768: 264.8, 896: 289.9, 1024: 311.0,
    2048: 600.0, 4096: 1180.0, 8192: 2350.0,
}  # fmt: skip


class Machine:
    """Seconds that a step takes on the device. graphs: row counts at which decode is captured."""

    def __init__(self, weights: str, graphs: tuple[int, ...]) -> None:
        table = BF16 if weights == "bf16" else FP8
        self._rows = np.array(list(table), dtype=float)
        self._us = np.array(list(table.values()))
        self._graphs = graphs
        self._rounding = 0.0 if weights == "bf16" else 1.5e-6

    def seconds(self, step: Step) -> float:
        rows, prefill = len(step.slots), step.prefill_rows
        decode = rows - prefill
        reading = _reading(step.starts[prefill:] + 1) if decode else 0.0
        if not prefill:
            at = bisect_left(self._graphs, decode)
            padded = self._graphs[at] if at < len(self._graphs) else decode
            return self._matmuls(padded) + reading + _head(padded) + 0.0007 + 2.5e-6 * padded
        tokens = int(step.lengths.sum())
        lengths, starts = step.lengths[:prefill].astype(float), step.starts[:prefill]
        attention = float((4 * 4096 * LAYERS * lengths * (starts + lengths / 2)).sum()) / 450e12
        per_token = (2.0e-6 + self._rounding) * tokens
        return self._matmuls(tokens) + reading + attention + per_token + 0.0019 + _head(rows)

    def _matmuls(self, rows: int) -> float:
        us: float = np.interp(rows, self._rows, self._us)
        if rows > self._rows[-1]:
            us = self._us[-1] * rows / self._rows[-1]
        return LAYERS * us / 1e6


def _head(rows: int) -> float:
    return float(np.interp(rows, [64, 400, 1000, 2000], [0.37, 0.53, 1.41, 2.8])) / 1e3


def _reading(lengths: npt.NDArray[np.int32]) -> float:
    """Seconds in which keys and values are read: more slowly where rows are short."""
    speed = float(np.interp(float(lengths.mean()), [100, 900], [2.5e12, 2.88e12]))
    return float(lengths.sum()) * KV_BYTES / speed


@dataclass
class Flight:
    """left: seconds of work that are not done yet, were nothing beside it."""

    step: Step
    left: float


class Device:
    """Steps on their way: two heads at work at a time where one of them is beside others."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.main: deque[Flight] = deque()
        self.beside: deque[Flight] = deque()

    def launch(self, step: Step, seconds: float) -> None:
        (self.beside if step.beside else self.main).append(Flight(step, seconds))

    def advance(self, until: float, flight: Flight | None = None) -> None:
        """Works until then, or until `flight` has landed."""
        while self.now < until and (flight is None or flight.left > 0):
            heads = [f for f in self._heads() if f is not None]
            if not heads:
                self.now = max(self.now, until) if flight is None else self.now
                return
            slower = [self._slower(f) if len(heads) > 1 else 1.0 for f in heads]
            took = min(f.left * by for f, by in zip(heads, slower, strict=True))
            took = min(took, until - self.now)
            self.now += took
            for head, by in zip(heads, slower, strict=True):
                head.left = 0.0 if head.left * by <= took * (1 + 1e-9) else head.left - took / by

    def _slower(self, flight: Flight) -> float:
        return SLOWER_PREFILL if flight.step.beside else SLOWER_DECODE

    def _heads(self) -> tuple[Flight | None, Flight | None]:
        """The first of each kind that has work left, unless it waits for the other's."""
        main = next((f for f in self.main if f.left > 0), None)
        side = next((f for f in self.beside if f.left > 0), None)
        if main is None or side is None:
            return main, side
        if side.step.id > main.step.id:
            return main, None
        return (None, side) if main.step.prefill_rows else (main, side)


@dataclass
class Run:
    """What came of a load. Times in seconds of the virtual clock."""

    end: float = 0.0
    steps: int = 0
    prefill_steps: int = 0
    prefill_s: float = 0.0
    retractions: int = 0
    host_s: float = 0.0
    plan_us: list[float] = field(default_factory=list)
    due: dict[int, float] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)
    outputs: dict[int, int] = field(default_factory=dict)


def simulate(
    load: Workload,
    config: ScheduleConfig,
    machine: Machine,
    pool: int,
    timeline: float = 0.0,
    asked: int = 0,
    seen: int = 0,
) -> Run:
    """Runs the load to its end. pool: tokens of pages. timeline: seconds between two lines.
    asked: tokens that every request asks for, to stop where its output ends; 0: just these. seen:
    requests of such a load that ended before."""
    scheduler = Scheduler(config, pool // config.page_size, CONTEXT, config.max_running, VOCAB)
    inputs, outputs = lengths(load)
    due, run = arrivals(load), Run()
    for tokens in outputs[:seen].tolist():
        scheduler.running.lengths.ended(tokens, stopped=True)
    scheduler.running.lengths.refresh(np.zeros(0, dtype=np.int32))
    rng = np.random.default_rng(0)
    run.due = dict(enumerate(due.tolist()))
    run.outputs = dict(enumerate(outputs.tolist()))
    waiting: deque[int] = deque(range(load.requests))
    last = np.zeros(config.max_running, dtype=np.int64)
    now = told = 0.0 if load.rate else START_S
    device = Device(now)
    main, beside = device.main, device.beside

    def settle(flights: deque[Flight]) -> None:
        nonlocal now
        device.advance(math.inf, flights[0])
        now = max(now, device.now)
        done = flights.popleft().step
        tokens = np.where(done.outputs >= last[done.slots], STOP, STOP + 1)
        next, deltas = scheduler.settle(done, StepResult(np.where(done.samples, tokens, -1)))
        for rid in (*next.rids.tolist(), *(delta.rid for delta in deltas)):
            run.first.setdefault(rid, now)
            run.last[rid] = now

    while waiting or main or beside or not scheduler.idle:
        if scheduler.idle and not main and not beside:
            now = max(now, due[waiting[0]])
        while waiting and due[waiting[0]] <= now:
            rid = waiting.popleft()
            ids = rng.integers(300, 3000, int(inputs[rid]), dtype=np.int32)
            sampling = Sampling(max_tokens=int(outputs[rid]))
            if asked:
                sampling = Sampling(max_tokens=asked, stop_ids=(STOP,))
            scheduler.add(TokenRequest(rid, ids_to_bytes(ids), sampling, arrival=float(due[rid])))
        began = time.perf_counter()
        step = scheduler.next_step()
        run.plan_us.append((time.perf_counter() - began) * 1e6)
        if step is not None:
            now += HOST_PREFILL_S if step.prefill_rows else HOST_S
            device.advance(now)
            took = machine.seconds(step)
            device.launch(step, took)
            for new in step.new:
                last[new.slot] = outputs[new.rid] - 1
            run.steps += 1
            if step.prefill_rows:
                run.prefill_steps += 1
                run.prefill_s += took
            if step.beside:
                continue
        while beside and (beside[0].left <= 0 or not main):
            settle(beside)
        while main and not (step is not None and len(main) <= config.depth):
            if main[0].step.prefill_rows and beside and beside[0].step.id < main[0].step.id:
                settle(beside)
            else:
                settle(main)
        if timeline and now - told >= timeline:
            told, stats = now, scheduler.stats()
            print(
                f"{now:7.2f} running {stats.running:5d} waiting {stats.waiting:5d} "
                f"kv {stats.used_tokens:7d} out {stats.generated_tokens:7d} "
                f"in {stats.prompt_tokens:7d} retracted {stats.retractions}"
            )
    run.end, run.retractions = now, scheduler.stats().retractions
    return run


def report(name: str, run: Run) -> str:
    tokens = sum(run.outputs.values())
    ttft = np.array([run.first[r] - run.due[r] for r in run.first]) * 1e3
    tpot = np.array(
        [(run.last[r] - run.first[r]) / (n - 1) for r, n in run.outputs.items() if n > 1]
    )
    return (
        f"{name:<34} {tokens / run.end:8.0f} tok/s {run.end:7.2f} s  steps {run.steps:6d} "
        f"prefill {run.prefill_steps:5d} {run.prefill_s:6.2f} s  retracted {run.retractions:4d}  "
        f"ttft ms p50 {np.median(ttft):8.1f} p99 {np.quantile(ttft, 0.99):8.1f}  "
        f"tpot ms p50 {1e3 * np.median(tpot):6.2f} p99 {1e3 * np.quantile(tpot, 0.99):6.2f}  "
        f"plan us {np.mean(run.plan_us):5.0f} p99 {np.quantile(run.plan_us, 0.99):6.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", nargs="+", choices=LOADS, default=["sharegpt", "mid", "long"])
    parser.add_argument("--weights", nargs="+", choices=("bf16", "fp8"), default=["bf16"])
    parser.add_argument("--pool", type=int, default=0, help="tokens; 0: as measured")
    parser.add_argument("--graphs", type=int, default=0, help="largest; 0: as planned")
    parser.add_argument("--asked", type=int, default=0, help="max_tokens of all, who stop before")
    parser.add_argument("--seen", type=int, default=0, help="requests that ended before")
    parser.add_argument("--timeline", type=float, default=0.0)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    args = parser.parse_args()
    fields = {"chunk": 8192, "max_running": 1024, "prefix_cache": False}
    fields |= {k: msgspec.json.decode(v) for k, _, v in (s.partition("=") for s in args.set)}
    config = msgspec.convert(fields, ScheduleConfig)
    for weights in args.weights:
        sizes = graph_sizes(args.graphs or min(1024, config.max_running), weights == "fp8")
        pool = args.pool or {"bf16": 432_144, "fp8": 484_992}[weights]
        for name in args.load:
            machine = Machine(weights, sizes)
            run = simulate(LOADS[name], config, machine, pool, args.timeline, args.asked, args.seen)
            print(report(f"{weights}-{name}", run), flush=True)


if __name__ == "__main__":
    main()
