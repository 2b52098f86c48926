"""The same workload at several rates or concurrencies, one after the other."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.bench.load import Run
from appliance.bench.measure import Slo
from appliance.bench.report import number
from appliance.bench.workload import Workload
from appliance.errors import UsageError


@dataclass(frozen=True)
class Sweep:
    """What changes from run to run: rate (requests/s), concurrency, or nothing but the run."""

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
    seed: int
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
        run = send(changed, int(value) if plan.name == "concurrency" else concurrency)
        points.append(Point(value, changed.seed, run, figures(run)))
    return points


_GOOD = 0.99
"""Share of requests within the SLO at which a server holds a load."""


def held(plan: Sweep, points: list[Point], slo: Slo | None) -> list[str]:
    """What the sweep says of the SLO, or of throughput without one: a sentence, as lines."""
    if plan.name == "run":
        speeds = sorted(point.figures["out_tok_s"] for point in points)
        middle = statistics.median(speeds)
        spread = (speeds[-1] - speeds[0]) / 2 / middle if middle else 0.0
        return ["", f"{middle:,.0f} output tokens a second in the median, ±{spread:.1%}."]
    if slo is None:
        best = max(points, key=lambda point: float(point.figures["out_tok_s"]))
        return [
            "",
            f"Most output, {best.figures['out_tok_s']:,.0f} tok/s, at {_named(plan, best)}.",
        ]
    good = [point for point in points if point.figures["slo_share"] >= _GOOD]
    limits = ", ".join(f"{name} ≤ {limit:g} ms" for name, limit in slo.limits)
    if not good:
        return ["", f"At none of these do {_GOOD:.0%} of the requests meet {limits}."]
    best = max(good, key=lambda point: point.value)
    share = best.figures["slo_share"]
    return ["", f"It holds {_named(plan, best)}: {share:.1%} of the requests meet {limits}."]


def _named(plan: Sweep, point: Point) -> str:
    return f"{plan.name} {point.value:g}"


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
