"""Logits of the engine against transformers, and the time of its steps, on one GPU.

    python -m benchmarks.engine_check --shape FOLDER [--work DIR] [--no-reference]

FOLDER holds a config.json. Random weights are made by transformers, saved, and loaded by the
engine's own loader. Prints one line a check; exits 1 when one is out of bounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
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
BOUND = 2e-2


def i32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


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

    def prefill(self, prompts: list[np.ndarray], room: int, keep: bool = True) -> np.ndarray:
        """All prompts in one step, slot i for prompt i; pages one after the other."""
        n = len(prompts)
        each = -(-room // PAGE)
        slots = np.arange(n, dtype=np.int32)
        step = Step(
            id=0, slots=slots, starts=np.zeros(n, np.int32),
            lengths=np.array([len(p) for p in prompts], np.int32), prefill_rows=n,
            ids=np.concatenate(prompts), samples=np.ones(n, np.bool_),
            outputs=np.zeros(n, np.int32), page_slots=np.repeat(slots, each),
            page_columns=np.tile(np.arange(each, dtype=np.int32), n),
            page_ids=np.arange(1, n * each + 1, dtype=np.int32),
            new=[NewRow(i, i, p, len(p), Sampling(max_tokens=9, temperature=0.0))
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


def config_for(folder: Path, graphs: bool, load_format: str) -> RuntimeConfig:
    return RuntimeConfig(
        run="check",
        dir=str(folder),
        model=ModelConfig(
            path=str(folder), id="check", dtype="bfloat16", quantization="none",
            context=8192, load_format=load_format,
        ),
        schedule=ScheduleConfig(chunk=8192, max_running=512),
        engine=EngineConfig(
            device="cuda", attention="flashinfer", memory_fraction=0.9, graphs=graphs,
            graph_batch_sizes=graph_sizes(512) if graphs else (), threads=4,
        ),
    )  # fmt: skip


def build(folder: Path, graphs: bool, load_format: str = "auto") -> Built:
    begin = time.perf_counter()
    config = config_for(folder, graphs, load_format)
    built = RankBuilder(config, read_spec(folder), 0, 0, None, lambda *a: None).build()
    print(f"built graphs={graphs} in {time.perf_counter() - begin:.1f} s {built.facts}", flush=True)
    return built


def relative(out: torch.Tensor, ref: torch.Tensor) -> float:
    return float((out.double() - ref.double()).norm() / ref.double().norm())


def check_logits(folder: Path, reference: torch.nn.Module, graphs: bool, steps: int = 8) -> float:
    """Largest relative L2 over 8 prompts, at the prompt's end and for `steps` decoded tokens."""
    rng = np.random.default_rng(1)
    vocab = read_spec(folder).vocab
    prompts = [
        rng.integers(0, vocab, n).astype(np.int32) for n in (1, 5, 17, 64, 200, 333, 900, 2000)
    ]
    built = build(folder, graphs)
    driver = Driver(built.executor)
    tokens = [driver.prefill(prompts, 2048)]
    lengths = np.array([len(p) for p in prompts])
    for k in range(steps):
        tokens.append(driver.decode(lengths + k))
    worst = 0.0
    for i, prompt in enumerate(prompts):
        full = np.concatenate([prompt, [int(t[i]) for t in tokens[:-1]]]).astype(np.int64)
        with torch.inference_mode():
            logits = reference(torch.from_numpy(full)[None].cuda()).logits[0].float().cpu()
        for k in range(steps + 1):
            worst = max(worst, relative(driver.seen[k][i], logits[len(prompt) - 1 + k]))
    del built, driver
    torch.cuda.empty_cache()
    return worst


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


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", required=True, type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/engine-check"))
    parser.add_argument("--no-reference", action="store_true")
    args = parser.parse_args()
    failed = False
    vocab = read_spec(args.shape).vocab
    if not args.no_reference:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        shape = AutoConfig.from_pretrained(args.shape)
        with torch.device("cuda"):
            reference = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).eval()
        shutil.rmtree(args.work, ignore_errors=True)
        begin = time.perf_counter()
        reference.save_pretrained(args.work, max_shard_size="4GB")
        files = json.dumps(sorted(p.name for p in args.work.iterdir()))
        print(f"saved in {time.perf_counter() - begin:.1f} s: {files}")
        for graphs in (False, True):
            worst = check_logits(args.work, reference, graphs)
            failed |= not worst < BOUND
            print(
                f"logits graphs={graphs}: worst relative L2 {worst:.2e} (bound {BOUND})", flush=True
            )
        del reference
        torch.cuda.empty_cache()
    time_steps(build(args.shape, True, "dummy"), vocab)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
