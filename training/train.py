"""Trains the embedded default model in a given time and leaves a complete model folder.

    python -m training.train --out DIR --minutes 6.5 --seed 0

The folder is complete from the first save on (every 90 s) and evaluated at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training import tokenizer as vocabulary
from training.documents import BOS, END, EOS, PAD, TURN
from training.evaluate import GOALS, Report, evaluate
from training.feed import Feed, Workers
from training.model import Llama, Shape
from training.text import IGNORED, sample_texts
from training.topics import arithmetic

_SAVE_EVERY_S = 90.0
_REPORT_EVERY_S = 10.0
_LEAST_S = 20.0
"""Training time that is left even when the start took long."""
Loss = Callable[[Tensor, Tensor, Tensor | None, torch.dtype], Tensor]


@dataclass(frozen=True)
class Recipe:
    minutes: float = 6.5
    seed: int = 0
    device: str = "cpu"
    shape: Shape = field(default_factory=Shape)
    length: int = 512
    rows: int = 128
    long_length: int = 2048
    long_rows: int = 32
    long_every: int = 12
    """Every so many steps one is of long conversations; 0: none."""
    peak_rate: float = 2.5e-3
    warmup: float = 0.03
    """Share of the time in which the rate rises."""
    decay: float = 0.1
    workers: int = 12
    texts: int = 60000
    """Documents the tokenizer is trained on."""
    questions: int = 2000
    """Questions of each kind in the evaluation, at most."""
    compiled: bool = True
    grace_s: float = 105.0
    """How long the start may take before it eats into the training time."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    def rate(self, done: float) -> float:
        """Learning rate when the share `done` of the time has passed: up, then straight to zero."""
        if done < self.warmup:
            return self.peak_rate * (0.02 + 0.98 * done / self.warmup)
        return self.peak_rate * max(0.0, (1.0 - done) / (1.0 - self.warmup))


@dataclass
class Record:
    """What training.json says."""

    began: float = field(default_factory=time.monotonic)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    curve: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    compiled: bool = False
    rollbacks: int = 0

    def write(self, path: Path, recipe: Recipe, report: Report | None) -> None:
        shape = recipe.shape
        out: dict[str, Any] = {
            "command": f"python -m training.train --minutes {recipe.minutes} --seed {recipe.seed}",
            "seed": recipe.seed,
            "date": self.date,
            "machine": machine(recipe.device),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "duration_s": round(time.monotonic() - self.began, 1),
            "training_minutes": recipe.minutes,
            "steps": self.steps,
            "tokens": self.tokens,
            "compiled": self.compiled,
            "rollbacks": self.rollbacks,
            "recipe": {
                "peak_rate": recipe.peak_rate,
                "rows": recipe.rows,
                "length": recipe.length,
                "long_rows": recipe.long_rows,
                "long_length": recipe.long_length,
                "long_every": recipe.long_every,
                "layers": shape.layers,
                "hidden": shape.hidden,
            },
            "held_out": None,
            "loss_curve": self.curve,
        }
        if report is not None:
            out["held_out"] = {
                "scores": report.scores,
                "asked": report.asked,
                "goals": GOALS,
                "missed": report.missed,
                "seconds": report.seconds,
                "wrong": report.wrong,
            }
        part = path.with_suffix(".part")
        part.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")
        part.rename(path)


def machine(device: str) -> str:
    if device.startswith("cuda"):
        return f"1x {torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores"
    return f"{platform.machine()}, {os.cpu_count()} CPU cores"


class Probe:
    """Held-out sums, answered by forced teaching: how often every digit of the total is right."""

    def __init__(self, tokenizer: Tokenizer, device: str, limit: int = 505) -> None:
        rows = []
        for a, b in sorted(arithmetic.HELD_OUT)[:limit]:
            head = f"{TURN}user\nWhat is {a} + {b}?{END}\n{TURN}assistant\n{a} + {b} ="
            asked = tokenizer.encode(head + " ", add_special_tokens=False).ids
            total = tokenizer.encode(f"{a + b}.", add_special_tokens=False).ids
            rows.append((asked, total))
        length = max(len(asked) + len(total) for asked, total in rows)
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        targets = torch.full((len(rows), length), IGNORED, dtype=torch.long)
        for i, (asked, total) in enumerate(rows):
            tokens[i, : len(asked) + len(total)] = torch.tensor(asked + total)
            targets[i, len(asked) - 1 : len(asked) + len(total) - 1] = torch.tensor(total)
        self._tokens, self._targets = tokens.to(device), targets.to(device)

    @torch.no_grad()
    def exact(self, model: Llama, dtype: torch.dtype) -> float:
        best = model(self._tokens, None, dtype).argmax(-1)
        right = (best == self._targets) | (self._targets == IGNORED)
        return float(right.all(-1).float().mean())


def parts(batch: Tensor, device: str, documents: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(tokens, targets, documents or None) of a feed's batch, on the device."""
    moved = batch.to(device, non_blocking=True).to(torch.int64)
    return moved[:, 0], moved[:, 1], moved[:, 2] if documents else None


class Trainer:
    """Model, optimizer and the last good state to fall back to."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_float32_matmul_precision("high")
        # Its kernels for masks that are broadcast over heads are not trusted here.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.recipe = recipe
        self.model = Llama(recipe.shape).to(recipe.device)
        self.loss: Loss = self.model.loss
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=recipe.peak_rate,
            betas=(0.9, 0.95),
            fused=recipe.device.startswith("cuda"),
        )
        self._good: dict[str, Tensor] = {}
        self.keep()

    def compile(self, batches: list[tuple[Tensor, Tensor, Tensor | None]]) -> bool:
        """Compiles the loss and tries it, backwards too; on any failure goes on without."""
        plain, self.loss = self.loss, torch.compile(self.loss, dynamic=False)
        try:
            for batch in batches:
                self.loss(*batch, self.recipe.dtype).backward()  # type: ignore[no-untyped-call]
                self.synchronize()
        except Exception as error:
            print(f"compile failed, going on without: {str(error)[:400]}", flush=True)
            self.loss = plain
            return False
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return True

    def step(self, batch: tuple[Tensor, Tensor, Tensor | None], rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss(*batch, self.recipe.dtype)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def synchronize(self) -> None:
        if self.recipe.device.startswith("cuda"):
            torch.cuda.synchronize()

    def keep(self) -> None:
        """Remembers the weights as good."""
        self._good = {name: t.detach().clone() for name, t in self.model.state_dict().items()}

    def restore(self) -> None:
        """Back to the last good weights; the optimizer forgets."""
        self.model.load_state_dict(self._good)
        self.optimizer.state.clear()


def save(trainer: Trainer, tokenizer: Tokenizer, out: Path) -> None:
    """Writes the model folder as it is now."""
    ids = tokenizer.get_vocab()
    trainer.model.export(out, bos=ids[BOS], eos=[ids[END], ids[EOS]], pad=ids[PAD])
    vocabulary.save(tokenizer, out, trainer.recipe.shape.context)


def run(recipe: Recipe, out: Path) -> Report | None:
    """Trains, saves, evaluates; the report is None when the evaluation itself failed."""
    record = Record()
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="training-"))
    try:
        tokenizer = vocabulary.train(sample_texts(recipe.seed, recipe.texts), recipe.shape.vocab)
        tokenizer.save(str(scratch / "tokenizer.json"))
        print(f"tokenizer: {tokenizer.get_vocab_size()} entries", flush=True)
        lengths = {recipe.length: (recipe.workers, 512)}
        if recipe.long_every:
            lengths[recipe.long_length] = (max(1, recipe.workers // 8), 128)
        with Workers(
            scratch, scratch / "tokenizer.json", seed=recipe.seed, lengths=lengths
        ) as workers:
            trainer = Trainer(recipe)
            _train(trainer, tokenizer, scratch, out, record, workers)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report: Report | None = None
    try:
        report = evaluate(out, device=recipe.device, limit=recipe.questions)
        print(json.dumps({"scores": report.scores, "missed": report.missed}), flush=True)
        for failure in report.wrong:
            print("wrong:", json.dumps(failure, ensure_ascii=False)[:300], flush=True)
    except Exception as error:
        print(f"evaluation failed: {error!r}", flush=True)
    record.write(out / "training.json", recipe, report)
    print(f"done in {time.monotonic() - record.began:.0f} s: {out}", flush=True)
    return report


def _train(
    trainer: Trainer,
    tokenizer: Tokenizer,
    scratch: Path,
    out: Path,
    record: Record,
    workers: Workers,
) -> None:
    recipe = trainer.recipe
    pinned = recipe.device.startswith("cuda")
    short = Feed(scratch, recipe.length, recipe.rows, recipe.seed, pinned)
    long = Feed(scratch, recipe.long_length, recipe.long_rows, recipe.seed, pinned)
    probe = Probe(tokenizer, recipe.device)

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        if recipe.long_every and step % recipe.long_every == recipe.long_every - 1 and long.ready():
            return parts(long.next(), recipe.device, documents=False)
        return parts(short.next(), recipe.device, documents=True)

    if recipe.compiled:
        tries = [batch(0)]
        if recipe.long_every:
            tries.append(parts(long.next(), recipe.device, documents=False))
        record.compiled = trainer.compile(tries)
    budget = recipe.minutes * 60
    began = time.monotonic()
    late = max(0.0, began - record.began - recipe.grace_s)
    budget = max(min(_LEAST_S, budget), budget - late)
    print(f"start took {began - record.began:.0f} s, training for {budget:.0f} s", flush=True)
    if failed := workers.failed():
        print(f"text workers ended early: {failed}", flush=True)

    reported, saved, lowest = began, began, math.inf
    losses: list[Tensor] = []
    scale = 1.0
    while (now := time.monotonic()) - began < budget:
        done = (now - began) / budget
        given = batch(record.steps)
        losses.append(trainer.step(given, recipe.rate(done) * scale))
        record.steps += 1
        record.tokens += given[0].numel()
        if now - reported < _REPORT_EVERY_S:
            continue
        loss = float(torch.stack(losses).mean())
        losses = []
        if not loss < 2.0 * lowest + 1.0:
            trainer.restore()
            record.rollbacks += 1
            scale *= 0.5
            print(f"loss {loss}: back to the last good weights, rate halved", flush=True)
            reported = time.monotonic()
            continue
        trainer.keep()
        lowest = min(lowest, loss)
        passed = time.monotonic() - began
        sums = probe.exact(trainer.model, recipe.dtype)
        record.curve.append(
            {
                "seconds": round(passed, 1),
                "step": record.steps,
                "tokens": record.tokens,
                "loss": round(loss, 5),
                "held_out_sums": round(sums, 4),
            }
        )
        print(
            f"{passed:6.0f} s  step {record.steps:6d}  {record.tokens / 1e6:8.1f} M tokens "
            f"({record.tokens / passed / 1e6:.2f} M/s)  loss {loss:.4f}  held-out sums {sums:.3f}  "
            f"shards {short.fresh_shards}+{short.repeated_shards} again",
            flush=True,
        )
        reported = time.monotonic()
        if reported - saved > _SAVE_EVERY_S:
            save(trainer, tokenizer, out)
            record.write(out / "training.json", recipe, None)
            saved = time.monotonic()
    save(trainer, tokenizer, out)
    record.write(out / "training.json", recipe, None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=128, help="rows of 512 tokens a step")
    parser.add_argument("--peak-rate", type=float, default=2.5e-3)
    parser.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 2) - 4)))
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    recipe = Recipe(
        minutes=args.minutes,
        seed=args.seed,
        device=args.device,
        rows=args.rows,
        peak_rate=args.peak_rate,
        workers=args.workers,
        compiled=not args.no_compile and args.device.startswith("cuda"),
    )
    report = run(recipe, args.out)
    return 0 if report is not None and not report.missed else 1


if __name__ == "__main__":
    sys.exit(main())
