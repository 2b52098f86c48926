"""The same workload at several rates or concurrencies, one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.bench.load import Run
from appliance.bench.report import number
from appliance.bench.workload import Workload
from appliance.errors import UsageError


@dataclass(frozen=True)
class Sweep:
    """What changes from run to run: rate (requests/s) or concurrency."""

    name: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Sweep:
        """``rate=1,2,4`` or ``concurrency=1,16,64``. Raises UsageError."""
        found = re.fullmatch(r"(rate|concurrency)=([\d.]+(?:,[\d.]+)*)", text.replace(" ", ""))
        if not found:
            raise UsageError(
                f"{text!r} is no sweep.", "Write such as rate=1,2,4 or concurrency=1,16,64."
            )
        values = tuple(float(value) for value in found[2].split(","))
        if min(values) <= 0:
            raise UsageError("A sweep starts above 0.", "Leave the 0 out.")
        return cls(found[1], values)


@dataclass(frozen=True)
class Point:
    value: float
    run: Run
    figures: dict[str, Any]


def sweep(
    plan: Sweep,
    workload: Workload,
    concurrency: int,
    send: Callable[[Workload, int], Run],
    figures: Callable[[Run], dict[str, Any]],
) -> list[Point]:
    """Every run has a seed of its own, so that no run finds another's prompts in a cache."""
    points = []
    for i, value in enumerate(plan.values):
        changed = msgspec.structs.replace(
            workload,
            seed=workload.seed + i,
            rate=value if plan.name == "rate" else workload.rate,
        )
        run = send(changed, concurrency if plan.name == "rate" else int(value))
        points.append(Point(value, run, figures(run)))
    return points


def table(plan: Sweep, points: list[Point]) -> str:
    heads = (
        plan.name,
        "req/s",
        "out tok/s",
        "TTFT p50",
        "TTFT p99",
        "TPOT p50",
        "ITL p99",
        "failed",
    )
    keys = ("req_s", "out_tok_s", "ttft_ms_p50", "ttft_ms_p99", "tpot_ms_p50", "itl_ms_p99")
    lines = ["".join(f"{head:>12}" for head in heads)]
    for point in points:
        cells = [f"{point.value:g}", *(number(point.figures[key], 2) for key in keys)]
        cells.append(str(point.figures["failed"]))
        lines.append("".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)
