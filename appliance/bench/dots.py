"""Charts for a terminal: lines in braille dots, histograms in bars of eighths. No colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from appliance.bench.chart import Chart
from appliance.bench.measure import Floats

_WIDTH, _HEIGHT = 64, 12
_LEFT = 9
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of the dot in row r, column c of a cell of 4 × 2."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_FULL = 40


def draw(charts: Sequence[Chart]) -> str:
    """Lines over a logarithm all end at the same height: each gets a chart of its own."""
    apart = [one for chart in charts for one in (_split(chart) if chart.log_x else [chart])]
    return "\n\n".join(_bars(c) if c.edges is not None else _lines(c) for c in apart)


def _split(chart: Chart) -> list[Chart]:
    return [replace(chart, lines=(line,)) for line in chart.lines]


def number(value: float) -> str:
    """At most seven characters."""
    if value and abs(value) < 10:
        return f"{value:.2f}"
    if abs(value) < 100:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.1e}"


def _bars(chart: Chart) -> str:
    assert chart.edges is not None
    (line,) = chart.lines
    most = max(float(line.y.max()), 1.0)
    text = [f"{chart.title}, {chart.x_label}"]
    limits = [value for _, value in chart.marks]
    for low, high, count in zip(chart.edges[:-1], chart.edges[1:], line.y, strict=True):
        eighths = round(count / most * _FULL * 8)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        here = " ◄ limit" if any(low <= limit < high for limit in limits) else ""
        text.append(f"{number(low):>8} – {number(high):<8} {bar} {count:.0f}{here}")
    return "\n".join(text)


def _lines(chart: Chart) -> str:
    xs = np.concatenate([line.x for line in chart.lines])
    ys = np.concatenate([line.y for line in chart.lines])
    low_x, high_x = float(xs.min()), float(xs.max())
    log = chart.log_x and low_x > 0
    top = max(float(ys.max()), chart.limit[1] if chart.limit else 0.0) or 1.0
    cells = np.zeros((_HEIGHT, _WIDTH), dtype=np.int64)

    def column(x: Floats) -> Floats:
        ends = np.array([low_x, high_x])
        at, (a, b) = (np.log(x), np.log(ends)) if log else (x, ends)
        places: Floats = (at - a) / ((b - a) or 1.0) * (_WIDTH * 2 - 1)
        return places

    def row(y: Floats) -> Floats:
        return (1 - y / top) * (_HEIGHT * 4 - 1)

    tags: dict[int, str] = {}
    for line in chart.lines:
        _trace(cells, column(line.x), row(line.y))
        _tag(tags, int(row(line.y)[-1]) // 4, line.name)
    for _, value in chart.marks:
        if low_x <= value <= high_x:
            _dash(cells, int(column(np.array([value]))[0]), vertical=True)
    if chart.limit is not None:
        at = int(row(np.array([chart.limit[1]]))[0])
        _dash(cells, at, vertical=False)
        _tag(tags, at // 4, f"{chart.limit[0]} {number(chart.limit[1])}")
    text = [f"{chart.title}, {chart.y_label}"]
    for i, cell in enumerate(cells):
        label = number(top) if i == 0 else "0" if i == _HEIGHT - 1 else ""
        drawn = "".join(chr(_BRAILLE + int(bits)) for bits in cell)
        text.append(f"{label:>{_LEFT - 2}} ┤{drawn} {tags.get(i, '')}".rstrip())
    ends = f"{number(low_x)}{number(high_x):>{_WIDTH - len(number(low_x))}}"
    text.append(" " * _LEFT + f"{ends} {chart.x_label}{' (logarithmic)' if log else ''}")
    return "\n".join(text)


def _trace(cells: npt.NDArray[np.int64], columns: Floats, rows: Floats) -> None:
    """Sets the dots of a line through all points, as dense as the dots are."""
    if len(columns) == 1:
        columns, rows = np.repeat(columns, 2), np.repeat(rows, 2)
    for i in range(len(columns) - 1):
        span = max(abs(columns[i + 1] - columns[i]), abs(rows[i + 1] - rows[i]))
        for share in np.linspace(0, 1, int(span) + 2):
            x = columns[i] + share * (columns[i + 1] - columns[i])
            y = rows[i] + share * (rows[i + 1] - rows[i])
            _dot(cells, round(x), round(y))


def _dash(cells: npt.NDArray[np.int64], at: int, vertical: bool) -> None:
    length = cells.shape[0] * 4 if vertical else cells.shape[1] * 2
    for place in range(0, length, 4):
        _dot(cells, *((at, place) if vertical else (place, at)))


def _dot(cells: npt.NDArray[np.int64], x: int, y: int) -> None:
    cells[y // 4, x // 2] |= _DOTS[y % 4][x % 2]


def _tag(tags: dict[int, str], row: int, name: str) -> None:
    """Beside its line's end, or as near as there is room."""
    free = min((r for r in range(_HEIGHT) if r not in tags), key=lambda r: abs(r - row))
    tags[free] = name
