"""Every row of the table in docs/measurements.md: what is sent, the settings, the goal."""

from __future__ import annotations

import re
from typing import NamedTuple


class Row(NamedTuple):
    """figure: the one the goal is about; above: it should be at least the goal.

    seconds: what it took on one H100, the start of its server left out.
    """

    id: str
    arguments: str
    figure: str
    better_peer: float
    goal: float
    above: bool
    seconds: int


class Group(NamedTuple):
    """Rows of one server. name: of the script's choice."""

    name: str
    settings: tuple[str, ...]
    rows: tuple[Row, ...]


NO_CACHE = "schedule.prefix_cache=false"
FP8 = "model.quantization=fp8"
ONE = "--dataset fixed:128,256 --num-prompts 6 --max-concurrency 1"
SHAREGPT = "--dataset sharegpt-like --num-prompts 2000"
LONG = "--dataset range:2048-4096,256-512 --num-prompts 300"

BF16_ROWS = (
    Row("bf16-sharegpt-2000", SHAREGPT, "out_tok_s", 9737, 14000, True, 45),
    Row("bf16-one", ONE, "tpot_ms_p50", 6.42, 5.5, False, 15),
    Row("bf16-16", "--dataset fixed:512,256 --num-prompts 16", "out_tok_s", 2038, 2350, True, 8),
    Row("bf16-rate-8", "--dataset sharegpt-like --num-prompts 240 --request-rate 8",
        "tpot_ms_p50", 7.23, 6.0, False, 40),
    Row("bf16-rate-16", "--dataset sharegpt-like --num-prompts 480 --request-rate 16",
        "tpot_ms_p50", 7.87, 6.5, False, 40),
    Row("bf16-mid-600", "--dataset range:512-1024,128-512 --num-prompts 600",
        "out_tok_s", 6796, 8500, True, 40),
    Row("bf16-long-300", LONG, "out_tok_s", 2397, 3000, True, 65),
)  # fmt: skip
FP8_ROWS = (
    Row("fp8-sharegpt-2000", SHAREGPT, "out_tok_s", 11697, 17000, True, 40),
    Row("fp8-one", ONE, "tpot_ms_p50", 4.22, 3.3, False, 12),
    Row("fp8-long-300", LONG, "out_tok_s", 3031, 3800, True, 55),
)
FP8_PREFIX_ROWS = (
    Row("fp8-prefix", "--dataset prefix:64,2048,128,64", "req_s", 77.6, 140, True, 20),
)

GROUPS = (
    Group("bf16", (NO_CACHE,), BF16_ROWS),
    Group("fp8", (NO_CACHE, FP8), FP8_ROWS),
    Group("fp8-prefix", (FP8,), FP8_PREFIX_ROWS),
)
"""Those of a server, most important first."""

OTHERS = ("host", "idle", "start")
"""Rows that benchmarks/engine_rows.py and benchmarks/start_times.py take."""


def tiny(arguments: str) -> str:
    """The same row with few and short requests, to see that it runs at all."""
    text = arguments.replace("--dataset sharegpt-like", "--dataset range:4-16,4-8")
    text = re.sub(r"--num-prompts (\d+)", "--num-prompts 4", text)
    text = re.sub(r"--request-rate (\d+)", "--request-rate 50", text)
    text = re.sub(r"fixed:\d+,\d+", "fixed:8,8", text)
    text = re.sub(r"range:\d{3,}-\d+,\d+-\d+", "range:8-16,4-8", text)
    return re.sub(r"prefix:\d+,\d+,\d+,\d+", "prefix:2,32,8,4 --num-prompts 4", text)
