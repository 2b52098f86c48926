"""Figures over time and shares of a whole, as bars of characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from appliance.status import TopSnapshot
from appliance.tui.styles import shade
from appliance.tui.text import UNICODE, Glyphs, Line, compact, duration, percent, said, timed, whole

Metric = Literal[
    "gen_tok_s", "prompt_tok_s", "running", "waiting", "kv_ratio", "ttft_p50_s", "power_w"
]
METRICS: dict[Metric, str] = {
    "gen_tok_s": "gen tok/s",
    "prompt_tok_s": "prompt tok/s",
    "running": "running",
    "waiting": "queued",
    "kv_ratio": "KV used",
    "ttft_p50_s": "TTFT p50",
    "power_w": "power",
}
SHORTEST_HISTORY_S = 120
AXIS = 6


def is_share(metric: str) -> bool:
    """Its full bar is a whole, not the largest value."""
    return metric == "kv_ratio" or metric.endswith("util")


def metric_value(metric: str, value: float, glyphs: Glyphs = UNICODE) -> str:
    """A value of a metric with its unit."""
    if is_share(metric):
        return percent(value, glyphs)
    if metric.endswith("_s") and "tok" not in metric:
        return timed(value, glyphs)
    return f"{whole(value, glyphs)} W" if metric.endswith("_w") else whole(value, glyphs)


def buckets(
    values: Sequence[float], width: int, shortest: int = SHORTEST_HISTORY_S
) -> tuple[list[float], int]:
    """At most ``width`` values, each the largest of its seconds, and how many seconds each has.

    One value a second comes in; `shortest` seconds at least are shown where there are so many.
    """
    if width < 1:
        return [], 1
    size = max(1, -(-min(len(values), shortest) // width))
    shown = list(values)[-width * size :]
    first = len(shown) % size
    groups = [shown[:first]] if first else []
    groups += [shown[at : at + size] for at in range(first, len(shown), size)]
    return [max(group) for group in groups][-width:], size


def bars(
    values: Sequence[float], width: int, height: int, glyphs: Glyphs = UNICODE, top: float = 0.0
) -> list[str]:
    """``height`` lines of bars, one column a value, the newest at the right edge.

    top: the value of a full bar; 0: the largest one.
    """
    shown = list(values)[-width:] if width > 0 else []
    largest = top or max(shown, default=0.0)
    steps = len(glyphs.levels) - 1
    lines = []
    for row in range(height - 1, -1, -1):
        line = ""
        for value in shown:
            level = value / largest * height * steps - row * steps if largest > 0 else 0.0
            filled = min(steps, max(0, round(level)))
            line += glyphs.levels[max(1, filled) if row == 0 and value > 0 else filled]
        lines.append(line.rjust(width))
    return lines


def gauge(ratio: float | None, width: int, glyphs: Glyphs = UNICODE) -> str:
    """A lying bar of ``width`` cells, full at 1."""
    steps = len(glyphs.eighths) - 1
    parts = round(min(1.0, max(0.0, ratio or 0.0)) * width * steps)
    if ratio and not parts:
        parts = 1
    full, rest = divmod(parts, steps)
    bar = glyphs.eighths[-1] * full + (glyphs.eighths[rest] if rest else "")
    return bar.ljust(width)


def shaded(lines: Sequence[str], style: str = "graph") -> list[Line]:
    """The lines of a graph, darker towards its foot."""
    return [said(line, shade(style, row, len(lines))) for row, line in enumerate(lines)]


def graph(
    top: TopSnapshot,
    metric: str,
    width: int,
    height: int,
    glyphs: Glyphs,
    full: float = 0.0,
    style: str = "graph",
) -> list[Line]:
    """Bars of one metric over all the 15 minutes, without a head."""
    shown, _ = buckets(top.history.get(metric, []), width, shortest=900)
    return shaded(bars(shown, width, height, glyphs, full), style)


def with_axis(
    values: Sequence[float], metric: str, width: int, height: int, glyphs: Glyphs, full: float
) -> list[Line]:
    """Bars with what the top and the bottom mean at their left."""
    drawn = shaded(bars(values, max(0, width - AXIS), height, glyphs, full))
    largest = full or max(values, default=0.0)
    labels = [""] * height
    if height:
        labels[-1] = "0"
        labels[0] = _label(metric, largest, glyphs) if largest else ""
    return [
        (("dim", f"{label:>{AXIS - 1}} "), *line) for label, line in zip(labels, drawn, strict=True)
    ]


def span(top: TopSnapshot, metric: str) -> str:
    """For how long the history of a metric reaches back."""
    return duration(len(top.history.get(metric, [])))


def _label(metric: str, value: float, glyphs: Glyphs) -> str:
    if is_share(metric):
        return percent(value, glyphs)
    if metric.endswith("_s") and "tok" not in metric:
        return timed(value, glyphs).replace(" ", "")[: AXIS - 1]
    return compact(value, glyphs)
