"""Logits of the engine against transformers, and the time of its steps, on one GPU.

    python -m benchmarks.engine_check --shape FOLDER [--work DIR] [--no-reference]

FOLDER holds a config.json. Random weights are made by transformers, saved, and loaded by the
engine's own loader. Prints one line a check; exits 1 when one is out of bounds.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig, ScheduleConfig
from appliance.runtime.engine.executor import DeviceExecutor
from appliance.runtime.engine.rank import Built, RankBuilder
from appliance.runtime.model.registry import read_spec
from appliance.runtime.plan import graph_sizes
from appliance.runtime.wire.request import Sampling
from appliance.runtime.wire.step import NewRow, Step

PAGE = 16
MODES = ("float32", "eager", "graphs")


def i32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


@dataclass
class Trace:
    """ids int64 [n]: prompt and decoded tokens; logits float32 [steps + 1, vocab] of the last."""

    ids: np.ndarray
    logits: torch.Tensor


class Driver:
    """Feeds hand-made steps to an executor and keeps the logits it saw."""

    def __init__(self, executor: DeviceExecutor) -> None:
        self.executor = executor
        self.seen: list[torch.Tensor] = []
        head = executor.head

        def keep(hidden: torch.Tensor) -> torch.Tensor:
            logits = head(hidden)
            self.seen.append(logits.float().cpu())
            return logits

        self._plain, self._keeping = head, keep

    def run(self, step: Step, keep: bool) -> np.ndarray:
        self.executor.head = self._keeping if keep else self._plain
        flight = self.executor.launch(step)
        flight.sample(None)
        return flight.wait().tokens

    def prefill(
        self, prompts: list[np.ndarray], room: int, keep: bool = True, first: int = 0
    ) -> np.ndarray:
        """All prompts in one step, slot first + i for prompt i; pages one after the other."""
        n = len(prompts)
        each = -(-room // PAGE)
        slots = np.arange(first, first + n, dtype=np.int32)
        step = Step(
            id=0, slots=slots, starts=np.zeros(n, np.int32),
            lengths=np.array([len(p) for p in prompts], np.int32), prefill_rows=n,
            ids=np.concatenate(prompts), samples=np.ones(n, np.bool_),
            outputs=np.zeros(n, np.int32), page_slots=np.repeat(slots, each),
            page_columns=np.tile(np.arange(each, dtype=np.int32), n),
            page_ids=np.arange(first * each + 1, (first + n) * each + 1, dtype=np.int32),
            new=[NewRow(first + i, i, p, len(p), Sampling(max_tokens=9, temperature=0.0))
                 for i, p in enumerate(prompts)],
            freed=[],
        )  # fmt: skip
        return self.run(step, keep)

    def decode(self, starts: np.ndarray, keep: bool = True) -> np.ndarray:
        n = len(starts)
        none = i32()
        step = Step(
            id=0, slots=np.arange(n, dtype=np.int32), starts=starts.astype(np.int32),
            lengths=np.ones(n, np.int32), prefill_rows=0, ids=none,
            samples=np.ones(n, np.bool_), outputs=np.zeros(n, np.int32), page_slots=none,
            page_columns=none, page_ids=none, new=[], freed=[],
        )  # fmt: skip
        return self.run(step, keep)


def config_for(folder: Path, mode: str, load_format: str) -> RuntimeConfig:
    """mode: graphs, eager or float32 (plain torch attention and arithmetic on the GPU)."""
    wide, graphs = mode == "float32", mode == "graphs"
    return RuntimeConfig(
        run="check",
        dir=str(folder),
        model=ModelConfig(
            path=str(folder), id="check", dtype="float32" if wide else "bfloat16",
            quantization="none", context=8192, load_format=load_format,
        ),
        schedule=ScheduleConfig(chunk=1024 if wide else 8192, max_running=64 if wide else 512),
        engine=EngineConfig(
            device="cuda", attention="reference" if wide else "flashinfer", memory_fraction=0.9,
            max_total_tokens=40000 if load_format == "auto" else 0, graphs=graphs,
            graph_batch_sizes=graph_sizes(512) if graphs else (), threads=4,
        ),
    )  # fmt: skip


def build(folder: Path, mode: str, load_format: str = "auto") -> Built:
    begin = time.perf_counter()
    config = config_for(folder, mode, load_format)
    built = RankBuilder(config, read_spec(folder), 0, 0, None, lambda *a: None).build()
    while (chore := built.executor.chore(busy=False)) is not None:
        chore()  # passes that are captured while it serves
    print(f"built {mode} in {time.perf_counter() - begin:.1f} s {built.facts}", flush=True)
    return built


def relative(out: torch.Tensor, ref: torch.Tensor) -> float:
    return float((out.double() - ref.double()).norm() / ref.double().norm())


def engine_logits(folder: Path, mode: str, steps: int = 8) -> list[Trace]:
    """8 prompts through the engine: the last prompt token's logits and those of decoded tokens."""
    rng = np.random.default_rng(1)
    vocab = read_spec(folder).vocab
    lengths = np.array([1, 5, 17, 64, 200, 333, 900, 2000])
    prompts = [rng.integers(0, vocab, n).astype(np.int32) for n in lengths]
    built = build(folder, mode)
    driver = Driver(built.executor)
    # the short ones fit a captured prefill, the long ones do not
    begun = [driver.prefill(prompts[:5], 2048), driver.prefill(prompts[5:], 2048, first=5)]
    tokens = [np.concatenate(begun)]
    driver.seen = [torch.cat(driver.seen)]
    for k in range(steps):
        tokens.append(driver.decode(lengths + k))
    traces = []
    for i, prompt in enumerate(prompts):
        ids = np.concatenate([prompt, [int(t[i]) for t in tokens[:-1]]]).astype(np.int64)
        traces.append(Trace(ids, torch.stack([seen[i] for seen in driver.seen])))
    return traces


def reference_logits(
    folder: Path, dtype: torch.dtype, traces: list[Trace], steps: int = 8
) -> list[torch.Tensor]:
    """What transformers makes of the same ids, at the same positions."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cuda").eval()
    with torch.inference_mode():
        return [
            model(torch.from_numpy(t.ids)[None].cuda()).logits[0, -steps - 1 :].float().cpu()
            for t in traces
        ]


def compare(name: str, got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """Prints the relative L2 of each prompt, all its positions together; returns the worst."""
    errors = [relative(a, b) for a, b in zip(got, want, strict=True)]
    print(f"{name}: relative L2 {' '.join(f'{e:.1e}' for e in errors)}", flush=True)
    return max(errors)


def timed(driver: Driver, starts: np.ndarray, repeats: int = 20) -> float:
    """Median milliseconds of a decode step, host work and all."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        driver.decode(starts, keep=False)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[3:]) * 1e3)


def time_steps(built: Built, vocab: int) -> None:
    driver = Driver(built.executor)
    rng = np.random.default_rng(2)
    for rows in (1, 16, 64, 256, 512):
        prompts = [rng.integers(0, vocab, 16).astype(np.int32) for _ in range(rows)]
        driver.prefill(prompts, 544, keep=False)
        print(f"decode rows={rows} at 512: {timed(driver, np.full(rows, 511)):.3f} ms", flush=True)
    for rows, length in ((1, 128), (1, 1024), (8, 1024), (2, 4096)):
        prompts = [rng.integers(0, vocab, length).astype(np.int32) for _ in range(rows)]
        times = []
        for _ in range(5):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            driver.prefill(prompts, length + PAGE, keep=False)
            times.append(time.perf_counter() - begin)
        t = float(np.median(times))
        print(
            f"prefill {rows} x {length}: {t * 1e3:.2f} ms, {rows * length / t:.0f} tok/s, "
            f"{rows * length * 14e9 / t / 1e12:.0f} TFLOP/s",
            flush=True,
        )


def make_weights(shape: Path, work: Path) -> None:
    """Random weights by transformers, saved in bfloat16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(shape), dtype=torch.bfloat16
        )
    shutil.rmtree(work, ignore_errors=True)
    model.save_pretrained(work, max_shard_size="4GB")


def run_stage(stage: str, work: Path) -> None:
    """One stage in this process; what it found goes to files in `work`."""
    if stage in MODES:
        traces = engine_logits(work, stage)
        for i, trace in enumerate(traces):
            np.savez(work / f"{stage}-{i}.npz", ids=trace.ids, logits=trace.logits.numpy())
        return
    mode, name = stage.removeprefix("reference-").split(":")
    traces = load_traces(work, mode)
    dtype = torch.float32 if name == "float32" else torch.bfloat16
    for i, logits in enumerate(reference_logits(work, dtype, traces)):
        np.savez(work / f"{mode}-{name}-{i}.npz", logits=logits.numpy())


def load_traces(work: Path, mode: str) -> list[Trace]:
    found = [np.load(work / f"{mode}-{i}.npz") for i in range(8)]
    return [Trace(f["ids"], torch.from_numpy(f["logits"])) for f in found]


def check_against_reference(shape: Path, work: Path) -> bool:
    """True when a mode of the engine is out of bounds. Each stage has the GPU for itself.

    float32 must agree with transformers to 1e-3. In bfloat16 both round, transformers more often:
    the engine must be at least as near to the float32 truth as transformers' own bfloat16 is.
    """
    make_weights(shape, work)
    failed = False
    for mode in MODES:
        for stage in (mode, f"reference-{mode}:float32", f"reference-{mode}:bfloat16"):
            torch.cuda.empty_cache()
            arguments = ["--shape", str(shape), "--work", str(work), "--stage", stage]
            subprocess.run(
                [sys.executable, "-m", "benchmarks.engine_check", *arguments], check=True
            )
        got = [t.logits for t in load_traces(work, mode)]
        truth, same = (
            [torch.from_numpy(np.load(work / f"{mode}-{name}-{i}.npz")["logits"]) for i in range(8)]
            for name in ("float32", "bfloat16")
        )
        mine = compare(f"engine {mode} to transformers float32", got, truth)
        theirs = compare("transformers bfloat16 to its float32", same, truth)
        ok = mine < 1e-3 if mode == "float32" else mine <= theirs
        verdict = "ok" if ok else "WRONG"
        print(f"{mode}: worst {mine:.2e}, transformers bfloat16 {theirs:.2e}: {verdict}")
        failed |= not ok
    return failed


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", required=True, type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/engine-check"))
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--stage", default="")
    args = parser.parse_args()
    if args.stage:
        run_stage(args.stage, args.work)
        return 0
    failed = False
    vocab = read_spec(args.shape).vocab
    if not args.no_reference:
        failed = check_against_reference(args.shape, args.work)
    time_steps(build(args.shape, "graphs", "dummy"), vocab)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
