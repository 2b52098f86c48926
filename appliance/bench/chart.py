"""What is drawn of a run or a sweep, as numbers; a picture and a terminal both draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from appliance.bench.load import Run
from appliance.bench.measure import Floats, Slo, timeline
from appliance.bench.sweep import Point, Sweep

_BINS = 24
_WINDOWS = 40
_NAMES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "gap between tokens",
    "e2e": "whole request",
}


@dataclass(frozen=True)
class Line:
    name: str
    x: Floats
    y: Floats


@dataclass(frozen=True)
class Chart:
    """Lines, or bars when `edges` has the ends of the bins whose heights are those of one line.

    limit: a horizontal line with its name. marks: vertical ones.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    edges: Floats | None = None
    limit: tuple[str, float] | None = None
    marks: tuple[tuple[str, float], ...] = ()
    log_x: bool = False


def of_run(run: Run, slo: Slo | None = None) -> list[Chart]:
    """Distribution of latencies, histograms of TTFT and TPOT, tokens a second over time."""
    lines = [timeline(r) for r in run.records if not r.error]
    values = {
        "ttft": _ms([line.ttft for line in lines]),
        "tpot": _ms([line.tpot for line in lines]),
        "e2e": _ms([line.e2e for line in lines]),
    }
    limits = dict(slo.limits) if slo else {}
    charts = []
    kept = {name: found for name, found in values.items() if len(found)}
    if kept:
        charts.append(
            Chart(
                "latencies: share of requests within",
                "ms",
                "share",
                tuple(_cumulated(_NAMES[name], found) for name, found in kept.items()),
                marks=tuple((f"{n} limit", limits[n]) for n in kept if n in limits),
                log_x=True,
            )
        )
    for name in ("ttft", "tpot"):
        if name in kept:
            charts.append(_histogram(name, kept[name], limits.get(name)))
    times = np.concatenate([line.times for line in lines] or [np.empty(0)]) - run.start
    if len(times):
        charts.append(_over_time(times))
    return charts


def of_sweep(plan: Sweep, points: Sequence[Point], slo: Slo | None = None) -> list[Chart]:
    """Throughput, and p50 and p99 of each latency with the SLO's limit, over what was swept."""
    x = np.array([point.value for point in points])
    limits = dict(slo.limits) if slo else {}
    speed = _line("output tok/s", x, [p.figures for p in points], "out_tok_s")
    charts = [Chart("throughput", plan.name, "tok/s", (speed,))]
    for name in limits or ("ttft", "tpot"):
        found = [p.figures for p in points]
        lines = tuple(
            line
            for share in ("p50", "p99")
            if len((line := _line(share, x, found, f"{name}_ms_{share}")).x)
        )
        if lines:
            limit = ("SLO", limits[name]) if name in limits else None
            charts.append(Chart(_NAMES[name], plan.name, "ms", lines, limit=limit))
    return charts


def _line(name: str, x: Floats, found: list[dict[str, Any]], key: str) -> Line:
    """Points that have no such figure are left out."""
    y = np.array([np.nan if f[key] is None else f[key] for f in found], dtype=np.float64)
    there = ~np.isnan(y)
    return Line(name, x[there], y[there])


def _ms(seconds: Sequence[float | None]) -> Floats:
    return np.array([s for s in seconds if s is not None], dtype=np.float64) * 1000


def _cumulated(name: str, values: Floats) -> Line:
    ordered = np.sort(values)
    return Line(name, ordered, np.arange(1, len(ordered) + 1) / len(ordered))


def _histogram(name: str, values: Floats, limit: float | None) -> Chart:
    heights, edges = np.histogram(values, bins=min(_BINS, max(1, len(values))))
    marks = (("limit", limit),) if limit is not None else ()
    line = Line("requests", edges[:-1], heights.astype(np.float64))
    return Chart(_NAMES[name], "ms", "requests", (line,), edges=edges, marks=marks)


def _over_time(times: Floats) -> Chart:
    """Chunks with text by window, as a rate."""
    end = max(float(times.max()), 1e-3)
    counts, edges = np.histogram(times, bins=_WINDOWS, range=(0.0, end))
    width = edges[1] - edges[0]
    line = Line("tokens", (edges[:-1] + edges[1:]) / 2, counts / width)
    return Chart("tokens a second over time", "s", "tok/s", (line,))
