"""What keys and values of 8 bits change of a model's answers, format by format.

    python -m benchmarks.kv_accuracy --model FOLDER --text FILE [FILE ...]
        [--device cpu] [--length 512] [--pieces 16]

The text is cut into pieces; for each format: the perplexity over them, how far a token's log
probability is from the unrounded one (mean, 99th percentile), and how many of 64 greedy tokens
after the first half of a piece come before the first that differs (mean).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from appliance.runtime.offline import Engine

FORMATS = ("model", "e4m3", "e5m2")
NEW = 64


def pieces_of(model: Path, texts: list[Path], length: int, count: int) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = tokenizer.encode("\n".join(t.read_text() for t in texts)).ids
    return [ids[at : at + length] for at in range(0, len(ids) - length, length)][:count]


def told(
    model: Path, pieces: list[list[int]], kv_dtype: str, device: str
) -> tuple[np.ndarray, list[list[int]]]:
    """Log probability of every token of every piece, and the greedy tokens after each half."""
    settings = {"model.kv_dtype": kv_dtype, "engine.device": device}
    halves = [piece[: len(piece) // 2] for piece in pieces]
    with Engine(model, settings) as engine:
        answers = engine.generate(pieces, {"max_tokens": 1, "prompt_logprobs": 0})
        greedy = {"max_tokens": NEW, "temperature": 0.0, "ignore_eos": True}
        after = engine.generate(halves, greedy)
    found = [p.logprob for a in answers for p in (a.prompt_logprobs or [])[1:]]
    return np.array(found, dtype=np.float64), [list(a.ids) for a in after]


def same_until(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--pieces", type=int, default=16)
    options = parser.parse_args()
    pieces = pieces_of(options.model, options.text, options.length, options.pieces)
    print(f"{len(pieces)} pieces of {options.length} tokens")
    plain, expected = told(options.model, pieces, FORMATS[0], options.device)
    print(f"{'format':8} {'perplexity':>10} {'mean':>8} {'p99':>8} {'same of 64':>10}")
    for kv_dtype in FORMATS:
        found, after = told(options.model, pieces, kv_dtype, options.device)
        away = np.abs(found - plain)
        same = np.mean([same_until(a, b) for a, b in zip(after, expected, strict=True)])
        print(
            f"{kv_dtype:8} {math.exp(-found.mean()):10.3f} {away.mean():8.4f} "
            f"{np.quantile(away, 0.99):8.4f} {same:10.1f}"
        )


if __name__ == "__main__":
    main()
