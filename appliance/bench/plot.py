"""Charts as a PNG. The library that draws is an extra: without it the error says how to get it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from appliance.bench.chart import Chart
from appliance.errors import UsageError

_COLUMNS = 2
_INCHES = (6.4, 3.8)


def check() -> None:
    """Raises UsageError when nothing here can draw a picture: before the time of measuring."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as problem:
        raise UsageError(
            "A PNG is drawn by matplotlib, which is not installed.",
            "pip install 'appliance[plot]', or draw here with --plot term.",
        ) from problem


def draw(charts: Sequence[Chart], path: Path, title: str) -> None:
    """Writes all charts as one picture. Raises UsageError without the library."""
    check()
    from matplotlib.figure import Figure

    rows = -(-len(charts) // _COLUMNS)
    figure = Figure(figsize=(_INCHES[0] * _COLUMNS, _INCHES[1] * rows), layout="constrained")
    figure.suptitle(title)
    for place, chart in enumerate(charts, 1):
        axes = figure.add_subplot(rows, _COLUMNS, place)
        axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
        if chart.edges is not None:
            axes.stairs(chart.lines[0].y, chart.edges, fill=True)
        else:
            for line in chart.lines:
                mark = "o" if len(line.x) <= _COLUMNS * 8 else ""
                axes.plot(line.x, line.y, label=line.name, marker=mark)
            if chart.log_x:
                axes.set_xscale("log")
        if chart.limit is not None:
            name, value = chart.limit
            axes.axhline(value, linestyle="--", color="black", label=f"{name} {value:g}")
        for name, value in chart.marks:
            axes.axvline(value, linestyle="--", color="black", label=f"{name} {value:g}")
        axes.set_ylim(bottom=0)
        if chart.edges is None:
            axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110)
