"""Time of single steps on one GPU: prefill, decode (captured and eager), and both in one pass.

    python -m benchmarks.step_times --shape FOLDER [--cases NAME,NAME]
        [--no-few-rows] [--fp8] [--kernels 12]

Weights are made up. For each case: milliseconds from launch to the tokens on the host, and those
the host was busy in `launch`, median of repeats, beside the least that the arithmetic (14 GFLOP a
token at 700 TFLOP/s) and the reading (weights and KV at 3.0 TB/s) take one after the other.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig, ScheduleConfig
from appliance.runtime.engine.rank import RankBuilder
from appliance.runtime.model.registry import read_spec
from appliance.runtime.plan import graph_sizes
from appliance.runtime.wire.request import Sampling
from appliance.runtime.wire.step import NewRow, Step

PAGE = 16


class Case(NamedTuple):
    """prefill: (start, length) of each prefill row; rows decode rows at position `at`."""

    name: str
    prefill: tuple[tuple[int, int], ...]
    rows: int
    at: int


CASES = (
    Case("decode-1", (), 1, 512),
    Case("decode-16", (), 16, 512),
    Case("decode-120-long", (), 120, 3200),
    Case("decode-400", (), 400, 900),
    Case("decode-1000", (), 1000, 300),
    Case("prefill-128", ((0, 128),), 0, 0),
    Case("prefill-1024", ((0, 1024),), 0, 0),
    Case("prefill-1024-at-2048", ((2048, 1024),), 0, 0),
    Case("prefill-8192", ((0, 4096), (0, 4096)), 0, 0),
    Case("mixed-1024+120-long", ((2048, 1024),), 120, 3200),
    Case("mixed-512+120-long", ((2048, 512),), 120, 3200),
    Case("mixed-1024+400", ((0, 768), (0, 256)), 400, 900),
    Case("mixed-1024+1000", tuple((0, 205) for _ in range(5)), 1000, 300),
)


def step_of(case: Case) -> tuple[Step, Step]:
    """The step, and one that gives its slots their pages first."""
    n = len(case.prefill)
    slots = np.arange(n + case.rows, dtype=np.int32)
    ends = [s + length for s, length in case.prefill] + [case.at + 1] * case.rows
    counts = np.array([-(-e // PAGE) for e in ends])
    lengths = np.array([length for _, length in case.prefill] + [1] * case.rows, dtype=np.int32)
    history = np.zeros(1, dtype=np.int32)
    common = {
        "id": 0,
        "slots": slots,
        "starts": np.array([s for s, _ in case.prefill] + [case.at] * case.rows, dtype=np.int32),
        "lengths": lengths,
        "prefill_rows": n,
        "ids": np.arange(int(lengths[:n].sum()), dtype=np.int32) % 30000,
        "samples": np.ones(len(slots), dtype=np.bool_),
        "outputs": np.zeros(len(slots), dtype=np.int32),
    }
    none = np.zeros(0, dtype=np.int32)
    sampling = Sampling(max_tokens=9, temperature=0.0)
    first = Step(
        **common,
        page_slots=np.repeat(slots, counts),
        page_columns=np.concatenate([np.arange(c, dtype=np.int32) for c in counts]),
        page_ids=np.arange(1, int(counts.sum()) + 1, dtype=np.int32),
        new=[NewRow(int(s), int(s), history, 1, sampling) for s in slots],
        freed=[],
    )
    step = Step(**common, page_slots=none, page_columns=none, page_ids=none, new=[], freed=[])
    return step, first


def floor_ms(case: Case) -> float:
    tokens = sum(length for _, length in case.prefill) + case.rows
    read = 15.0e9 + case.rows * case.at * 131072
    attention = sum(4 * 32 * 4096 * length * (s + length / 2) for s, length in case.prefill)
    arithmetic = (tokens * 14e9 + attention) / 700e12
    kv = case.rows * case.at * 131072 / 3.0e12
    return 1e3 * (max(arithmetic, 15.0e9 / 3.0e12) + kv) if read else 0.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", required=True, type=Path)
    parser.add_argument("--cases", default="")
    parser.add_argument("--no-few-rows", action="store_true")
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--kernels", type=int, default=0)
    args = parser.parse_args()
    spec = read_spec(args.shape)
    config = RuntimeConfig(
        run="times", dir="/tmp",
        model=ModelConfig(path=str(args.shape), id="t", dtype="bfloat16",
                          quantization="fp8" if args.fp8 else "none",
                          context=8192, load_format="dummy"),
        schedule=ScheduleConfig(chunk=8192, max_running=1024),
        engine=EngineConfig(device="cuda", attention="flashinfer", memory_fraction=0.94,
                            few_rows=not args.no_few_rows,
                            graph_batch_sizes=graph_sizes(1024, args.fp8), threads=4),
    )  # fmt: skip
    built = RankBuilder(config, spec, 0, 0, None, lambda *_: None).build()
    while (chore := built.executor.chore(busy=False)) is not None:
        chore()  # passes that are captured while it serves
    print(built.facts, flush=True)
    for case in CASES:
        if not args.cases or case.name in args.cases.split(","):
            run(case, built.executor, args.kernels)


def run(case: Case, executor, kernels: int) -> None:
    step, first = step_of(case)
    times, host = [], []
    for i in range(12):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        flight = executor.launch(first if i == 0 else step)
        launched = time.perf_counter()
        flight.sample(None)
        flight.wait()
        times.append(time.perf_counter() - begin)
        host.append(launched - begin)
    ms, busy = (float(np.median(t[2:]) * 1e3) for t in (times, host))
    print(
        f"{case.name:22} {ms:8.2f} ms   launch {busy:6.2f} ms   floor {floor_ms(case):7.2f} ms",
        flush=True,
    )
    if kernels:
        show_kernels(executor, step, kernels)


def show_kernels(executor, step: Step, count: int) -> None:
    """Where one step's time on the GPU goes: its kernels by name, and the time between them."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        flight = executor.launch(step)
        flight.sample(None)
        flight.wait()
        torch.cuda.synchronize()
    spans = sorted(
        (e.time_range.start, e.time_range.end, e.name)
        for e in trace.events()
        if e.device_type == torch.autograd.DeviceType.CUDA
    )
    by_name: dict[str, list[float]] = {}
    for begin, end, name in spans:
        by_name.setdefault(name, []).append(end - begin)
    idle, seen = 0.0, spans[0][1]
    for begin, end, _ in spans[1:]:
        idle += max(0.0, begin - seen)
        seen = max(seen, end)
    whole = seen - spans[0][0]
    print(f"    {len(spans)} kernels in {whole:,.0f} us, {idle:,.0f} us between them"
          f" = {100 * idle / whole:.1f} %")  # fmt: skip
    for name, took in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:count]:
        print(f"    {sum(took):9,.0f} us {len(took):4} x {sum(took) / len(took):7.1f}  {name[:90]}")


if __name__ == "__main__":
    main()
