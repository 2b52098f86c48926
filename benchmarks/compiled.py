"""engine.compile off and on: steps that choose tokens in every way, and what a start takes.

    python -m benchmarks.compiled --shape FOLDER [--layers 8] [--device cuda] [--dtype bfloat16]
                                  [--rows 1,64,400] [--at 512] [--repeats 10] [--chains-only]

FOLDER needs config.json alone: weights are made up. Milliseconds from the launch of a step to its
tokens on the host, medians of repeats, off / on and how many times as fast. Ways: greedy; drawn
with top-p and min-p; greedy after penalties; greedy under a grammar's mask; and a prefill of 1,024
tokens. Kernels are compiled into a new folder first, then found there. A second table has the
chains alone, microseconds. On a GPU a third has what the layers run between their matmuls, in a
captured graph: our kernels, and what torch.compile makes of the same in plain torch. There the
first is of float32 alone: in 16 bits every chain has a kernel, whose times the second tells.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace

from appliance.kernels.chains import PLAIN
from appliance.kernels.compiled import CompiledChains
from appliance.kernels.ops import select
from appliance.kernels.torch_ops import TorchOps, descending
from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig, ScheduleConfig
from appliance.runtime.engine.rank import Built, RankBuilder
from appliance.runtime.engine.trial import trial_step
from appliance.runtime.model.registry import read_spec
from appliance.runtime.spec import ModelSpec
from appliance.runtime.wire.request import Sampling
from appliance.runtime.wire.step import PENALIZED_MOST, Masks, Step

PAGE = 16
WAYS = {
    "greedy": Sampling(max_tokens=9, temperature=0.0),
    "drawn": Sampling(max_tokens=9, temperature=0.8),
    "drawn, top-p": Sampling(max_tokens=9, temperature=0.8, top_p=0.9, min_p=0.01),
    "penalties": Sampling(max_tokens=9, temperature=0.0, frequency_penalty=0.5),
    "masked": Sampling(max_tokens=9, temperature=0.0),
}


def masks_of(way: str, rows: int, vocab: int) -> Masks | None:
    if way != "masked":
        return None
    words = (rows, -(-vocab // 32))
    bits = np.random.default_rng(0).integers(0, 1 << 32, words, dtype=np.uint32)
    return Masks(np.arange(rows, dtype=np.int32), bits)


def steps_of(
    way: str, rows: int, length: int, vocab: int, prefill: bool = False
) -> tuple[Step, Step]:
    """The step, and one that gives its slots what they need first."""
    first = trial_step(rows, length, PAGE, vocab, prefill)
    new = [replace(row, sampling=WAYS[way]) for row in first.new]
    first = replace(first, new=new)
    none = first.page_slots[:0]
    return replace(first, new=[], page_slots=none, page_columns=none, page_ids=none), first


def milliseconds(
    engines: tuple[Built, Built], step: Step, first: Step, masks: Masks | None, repeats: int
) -> list[float]:
    """Of each engine, which take turns: whatever else the machine does, it does to both."""
    times: list[list[float]] = [[], []]
    for i in range(repeats + 2):
        for own, engine in zip(times, engines, strict=True):
            begin = time.perf_counter()
            flight = engine.executor.launch(first if i == 0 else step)
            flight.sample(masks)
            flight.wait()
            own.append(time.perf_counter() - begin)
    return [statistics.median(own[2:]) * 1e3 for own in times]


def built(given: argparse.Namespace, spec: ModelSpec, compiled: bool) -> Built:
    cuda = given.device == "cuda"
    fast = cuda and given.dtype != "float32"
    most = max(given.rows)
    pages = max(most * -(-(given.at + 1) // PAGE), 1024 // PAGE) + 1
    config = RuntimeConfig(
        run="compiled", dir=tempfile.gettempdir(),
        model=ModelConfig(path=str(given.shape), id="c", dtype=given.dtype, quantization="none",
                          kv_dtype="model", context=2048, load_format="dummy"),
        schedule=ScheduleConfig(chunk=1024, max_prefill=1024, max_running=most),
        engine=EngineConfig(device=given.device, attention="flashinfer" if fast else "reference",
                            filter="search" if fast else "sort", graphs=fast,
                            graph_batch_sizes=tuple(given.rows) if fast else (), few_rows=fast,
                            even_decode=fast, fuse_rounding=False, memory_fraction=0.9,
                            max_total_tokens=pages * PAGE, threads=given.threads,
                            compile=compiled),
    )  # fmt: skip
    found = RankBuilder(config, spec, 0, 0, None, lambda *_: None).build()
    while (chore := found.executor.chore(busy=False)) is not None:
        chore()  # passes that are captured while it serves
    return found


def started(given: argparse.Namespace, spec: ModelSpec, compiled: bool) -> tuple[Built, float]:
    """An engine, and the seconds of its start."""
    begin = time.perf_counter()
    engine = built(given, spec, compiled)
    return engine, time.perf_counter() - begin


def compare(given: argparse.Namespace, spec: ModelSpec, engines: tuple[Built, Built]) -> None:
    def tell(case: str, times: list[float]) -> None:
        off, on = times
        print(f"{case:28} off {off:9.2f} ms   on {on:9.2f} ms   {off / on:5.2f} x", flush=True)

    for rows in given.rows:
        for way in WAYS:
            if way == "penalties" and rows > PENALIZED_MOST:
                continue
            step, first = steps_of(way, rows, given.at, spec.vocab)
            masks = masks_of(way, rows, spec.vocab)
            tell(f"decode {rows}, {way}", milliseconds(engines, step, first, masks, given.repeats))
    step, first = steps_of("greedy", 1, 1024, spec.vocab, prefill=True)
    tell("prefill 1024", milliseconds(engines, step, first, None, given.repeats))


def alone(device: torch.device, vocab: int, rows: tuple[int, ...]) -> None:
    """Each chain by itself, from the call until it is done."""
    made = CompiledChains(PLAIN._fields)
    made.build(device, vocab, lambda _: None)
    for n in rows:
        logits = torch.randn(n, vocab, device=device) * 3
        at, value = torch.arange(n, device=device), torch.rand(n, device=device) + 0.5
        table = torch.randint(0, 5, (n, vocab), dtype=torch.int16, device=device)
        bits = torch.randint(-1 << 31, 1 << 31, (n, -(-vocab // 32)), device=device).int()
        given: dict[str, tuple[torch.Tensor, ...]] = {
            "draw": (logits, value.clone(), at, at.int()),
            "keep": (logits, descending(logits), (at + vocab).int(), value / 2, value / 100),
            "penalize": (logits, at, table, at.clone(), value, value.clone(), value.clone()),
            "allow": (logits, at, bits),
        }
        for name, tensors in given.items():
            off, on = (
                microseconds(partial(chains._asdict()[name], *tensors), device)
                for chains in (PLAIN, made.chains)
            )
            line = f"{name:9} {n:4} rows of {vocab}: off {off:9.1f} us   on {on:9.1f} us"
            if device.type == "cuda":
                own = microseconds(kernel(name, device, tensors), device)
                line += f"   kernel {own:9.1f} us"
            print(f"{line}   {off / on:5.2f} x", flush=True)


def kernel(
    name: str, device: torch.device, tensors: tuple[torch.Tensor, ...]
) -> Callable[[], object]:
    """The same by the kernel that serves on a GPU; some change the logits in place."""
    ops = select(device, torch.bfloat16, search=True)
    if name == "keep":
        logits, _, *rest = tensors
        rows = torch.arange(len(logits), device=device, dtype=torch.int32)
        return partial(ops.keep_likely, logits, rows, *rest)
    by: dict[str, Callable[..., object]] = {
        "draw": ops.gumbel_argmax, "penalize": ops.penalize, "allow": ops.allow,
    }  # fmt: skip
    return partial(by[name], *tensors)


def microseconds(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(23):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[3:]) * 1e6


@torch.inference_mode()
def between_matmuls(spec: ModelSpec, rows: tuple[int, ...]) -> None:
    """Norm, activation and rotation by our kernels and compiled, in captured graphs."""
    from appliance.kernels.cuda_ops import CudaOps
    from benchmarks import gpu_clock

    device, plain, a = torch.device("cuda"), TorchOps(), spec.attention
    ours = CudaOps(device)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    k, v = (random(4096, PAGE, a.kv_heads, a.head_dim) for _ in range(2))
    weight, cos_sin = random(spec.hidden), torch.randn(2048, a.head_dim, device=device)
    ways: dict[str, tuple[str, Callable[[int], tuple[object, ...]]]] = {
        "add and norm": (
            "add_rms_norm",
            lambda n: (random(n, spec.hidden), random(n, spec.hidden), weight, 1e-5),
        ),
        "silu and mul": ("silu_and_mul", lambda n: (random(n, 2 * spec.intermediate),)),
        "rope and store": (
            "rope_store",
            lambda n: (
                random(n, (a.heads + 2 * a.kv_heads) * a.head_dim),
                torch.arange(n, device=device), cos_sin, k, v, torch.arange(n, device=device),
                None, None, 1e-5,
            ),
        ),
    }  # fmt: skip
    for name, (method, arguments) in ways.items():
        own, other = vars(CudaOps)[method], torch.compile(vars(TorchOps)[method], fullgraph=True)
        for n in rows:
            given = arguments(n)
            for tensor in given:
                if isinstance(tensor, torch.Tensor) and len(tensor) == n and n > 1:
                    torch._dynamo.mark_dynamic(tensor, 0)
            took = [
                gpu_clock.microseconds(gpu_clock.captured(partial(by, ops, *given), 20), 20)
                for by, ops in ((own, ours), (other, plain))
            ]
            print(f"{name}, {n:5} rows: ours {took[0]:7.1f} us, compiled {took[1]:7.1f} us",
                  flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", required=True, type=Path)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", default="1,64,400")
    parser.add_argument("--at", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--chains-only", action="store_true", help="no steps, which need an engine")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    given.rows = tuple(int(n) for n in given.rows.split(","))
    spec = read_spec(given.shape)
    if given.layers:
        spec = replace(spec, layers=given.layers)
    with tempfile.TemporaryDirectory(prefix="compiled-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        if not given.chains_only and (given.device == "cpu" or given.dtype == "float32"):
            engines(given, spec)
        with torch.inference_mode():
            alone(torch.device(given.device), spec.vocab, given.rows)
        if given.device == "cuda" and given.dtype != "float32":
            between_matmuls(spec, (*given.rows, 1024))


def engines(given: argparse.Namespace, spec: ModelSpec) -> None:
    plain, off_s = started(given, spec, False)
    first, on_s = started(given, spec, True)
    first.executor.close()
    cold_s = first.facts["compile_chains_s"]
    del first
    gc.collect()
    own, _ = started(given, spec, True)
    print(f"start, s: off {off_s:.1f}, on {on_s:.1f}, of which torch.compile {cold_s:.1f}; found "
          f"compiled {own.facts['compile_chains_s']:.1f}", flush=True)  # fmt: skip
    compare(given, spec, (plain, own))


if __name__ == "__main__":
    main()
