"""What 8 bits change of a model's answers: weights in every form that is read, keys and values.

    python -m benchmarks.accuracy [--model FOLDER] [--text FILE [FILE ...]] [--only NAME,NAME]
        [--device cpu] [--dtype bfloat16] [--length 512] [--pieces 32] [--set KEY=VALUE ...]

Without a text: 200 documents of `training/text.py`. It is cut into pieces, and for each form is
told: the perplexity over them, how far a token's log probability is from the one in float32 with
nothing rounded (mean, 99th percentile), and how many of 64 greedy tokens after the first half of a
piece come before the first that differs (mean). The last pieces give the scales of tokens, where a
form has them fixed, and are not scored. `answers`: the same of those tokens alone that the embedded
model was taught to say.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from appliance import paths
from appliance.runtime.offline import Engine
from benchmarks import fp8_checkpoints
from training.documents import segments
from training.text import IGNORED, Packer, document

NEW, CALIBRATION, SEED = 64, 4, 99
KV = ("e4m3", "e5m2")
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Text:
    """pieces: ids. taught: of each token, whether the embedded model was taught to say it."""

    pieces: list[list[int]]
    taught: list[list[bool]]

    def first(self, count: int) -> Text:
        return Text(self.pieces[:count], self.taught[:count])


@dataclass(frozen=True)
class Told:
    """logprobs: of every token but each piece's first. greedy: what follows each half."""

    logprobs: np.ndarray
    greedy: list[list[int]]


@dataclass(frozen=True)
class Distance:
    perplexity: float
    mean: float
    p99: float
    answers_perplexity: float
    answers_mean: float
    same: float


def text_of(model: Path, files: list[Path], length: int, count: int) -> Text:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    if files:
        ids = tokenizer.encode("\n".join(f.read_text() for f in files)).ids
        taught = [True] * len(ids)
    else:
        rng = Random(SEED)
        coded = Packer(tokenizer, length).encode([segments(document(rng)) for _ in range(400)])
        ids = [i for piece, _ in coded for i in piece]
        learned = [t != IGNORED for _, targets in coded for t in targets]
        taught = [False, *learned[:-1]]  # a target stands one before its token
    starts = range(0, len(ids) - length + 1, length)
    return Text(
        [ids[at : at + length] for at in starts][:count],
        [taught[at : at + length] for at in starts][:count],
    )


def told(model: Path, text: Text, settings: Settings, new: int = NEW) -> Told:
    halves = [piece[: len(piece) // 2] for piece in text.pieces]
    with Engine(model, settings) as engine:
        answers = engine.generate(text.pieces, {"max_tokens": 1, "prompt_logprobs": 0})
        greedy = {"max_tokens": new, "temperature": 0.0, "ignore_eos": True}
        after = engine.generate(halves, greedy)
    found = [p.logprob for a in answers for p in (a.prompt_logprobs or [])[1:]]
    return Told(np.array(found, dtype=np.float64), [list(a.ids) for a in after])


def same_until(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def distance(found: Told, plain: Told, text: Text) -> Distance:
    taught = np.array([t for piece in text.taught for t in piece[1:]])
    away = np.abs(found.logprobs - plain.logprobs)
    same = [same_until(a, b) for a, b in zip(found.greedy, plain.greedy, strict=True)]
    return Distance(
        perplexity=math.exp(-found.logprobs.mean()),
        mean=float(away.mean()),
        p99=float(np.quantile(away, 0.99)),
        answers_perplexity=math.exp(-found.logprobs[taught].mean()),
        answers_mean=float(away[taught].mean()),
        same=float(np.mean(same)),
    )


class Forms:
    """Name -> (folder, settings). Checkpoints are written when they are first asked for."""

    def __init__(self, model: Path, folder: Path, calibration: list[list[int]]) -> None:
        self._model, self._folder, self._calibration = model, folder, calibration
        self._scales: dict[str, float] = {}

    names = ("plain", "online", *fp8_checkpoints.FORMS, *(f"kv-{kind}" for kind in KV))

    def __getitem__(self, name: str) -> tuple[Path, Settings]:
        if name == "plain":
            return self._model, {}
        if name == "online":
            return self._model, {"model.quantization": "fp8"}
        if name.startswith("kv-"):
            return self._model, {"model.kv_dtype": name.removeprefix("kv-")}
        form = fp8_checkpoints.FORMS[name]
        if form.fixed and not self._scales:
            self._scales = fp8_checkpoints.input_scales(self._model, self._calibration)
        fp8_checkpoints.write(self._model, self._folder / name, form, self._scales)
        return self._folder / name, {}


def setting(word: str) -> tuple[str, Any]:
    key, _, value = word.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=paths.default_model())
    parser.add_argument("--text", type=Path, nargs="+", default=[])
    parser.add_argument("--only", default=",".join(Forms.names))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--pieces", type=int, default=32)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


def main() -> None:
    given = _given()
    text = text_of(given.model, given.text, given.length, given.pieces + CALIBRATION)
    scored = text.first(len(text.pieces) - CALIBRATION)
    base = {"engine.device": given.device, **dict(map(setting, given.set))}
    print(f"{len(scored.pieces)} pieces of {given.length} tokens, {given.device}, {given.dtype}")
    plain = told(given.model, scored, {**base, "model.dtype": "float32"})
    print(f"{'':18}{'perplexity':>11}{'mean':>9}{'p99':>9}{f'of {NEW}':>7}", end="")
    print(f"{'answers: perplexity':>21}{'mean':>9}{'seconds':>9}", flush=True)
    show("float32", distance(plain, plain, scored), 0.0)
    with tempfile.TemporaryDirectory(prefix="accuracy-") as folder:
        forms = Forms(given.model, Path(folder), text.pieces[-CALIBRATION:])
        for name in given.only.split(","):
            begun = time.perf_counter()
            model, settings = forms[name]
            found = told(model, scored, {**base, "model.dtype": given.dtype, **settings})
            taken = time.perf_counter() - begun
            show(given.dtype if name == "plain" else name, distance(found, plain, scored), taken)


def show(name: str, d: Distance, seconds: float) -> None:
    print(f"{name:18}{d.perplexity:11.3f}{d.mean:9.4f}{d.p99:9.4f}{d.same:7.1f}", end="")
    print(f"{d.answers_perplexity:21.4f}{d.answers_mean:9.4f}{seconds:9.1f}", flush=True)


if __name__ == "__main__":
    main()
