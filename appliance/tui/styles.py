"""Every colour of the dashboard by what it means, on a dark ground and on a light one."""

from __future__ import annotations

GROUNDS = {True: "#121212", False: "#e0e0e0"}
"""What lies behind, dark and light, as the themes of Textual have it."""

_ALARM = "bold #ffffff on #a61b1b"  # readable too when NO_COLOR leaves only greys

STYLES: dict[bool, dict[str, str]] = {
    True: {
        "": "",
        "head": "bold #ffffff",
        "value": "bold #ffffff",
        "dim": "#9aa4ae",
        "key": "bold #d5dbe1",
        "tab": "bold #10161d on #8ab4f8",
        "graph": "#62b0e8",
        "graph-mid": "#4a94cd",
        "graph-low": "#3778ab",
        "power": "#b79cf0",
        "power-mid": "#9a7fd6",
        "power-low": "#7d65b3",
        "good": "bold #56d364",
        "warn": "#f0b440",
        "bad": "bold #ff7b72",
        "info": "#79b8ff",
        "alarm": _ALARM,
        "badge-good": "bold #06210d on #56d364",
        "badge-warn": "bold #2b1d00 on #f0b440",
        "badge-alarm": _ALARM,
        "badge-idle": "bold #10161d on #9aa4ae",
    },
    False: {
        "": "",
        "head": "bold #000000",
        "value": "bold #000000",
        "dim": "#4d5359",
        "key": "bold #1f2328",
        "tab": "bold #ffffff on #0b4f9e",
        "graph": "#1f6feb",
        "graph-mid": "#1a5fcb",
        "graph-low": "#154fa9",
        "power": "#8250df",
        "power-mid": "#6f42c1",
        "power-low": "#5a32a3",
        "good": "bold #116329",
        "warn": "#7a4300",
        "bad": "bold #a61b1b",
        "info": "#0b4f9e",
        "alarm": _ALARM,
        "badge-good": "bold #ffffff on #116329",
        "badge-warn": "bold #ffffff on #7a4300",
        "badge-alarm": _ALARM,
        "badge-idle": "bold #ffffff on #4d5359",
    },
}
"""By whether the ground is dark."""

LEVELS = {"": "", "info": "info", "warn": "warn", "warning": "warn", "error": "alarm"}
"""Styles of alerts and of log lines, by how loud they are."""

BADGES = {
    "ready": "badge-good",
    "starting": "badge-warn",
    "degraded": "badge-warn",
    "draining": "badge-warn",
    "failed": "badge-alarm",
    "stopped": "badge-idle",
}


def shade(style: str, row: int, rows: int) -> str:
    """Of a graph's line, counted from the top: darker below, where the graph is fullest."""
    place = (row + 0.5) / max(1, rows)
    if rows < 3 or place < 1 / 3:
        return style
    return f"{style}-mid" if place < 2 / 3 else f"{style}-low"


def above(value: float | None, warn: float, bad: float, calm: str = "value") -> str:
    """The style of a value by two limits; a missing one is calm."""
    if value is None or value < warn:
        return calm
    return "bad" if value >= bad else "warn"
