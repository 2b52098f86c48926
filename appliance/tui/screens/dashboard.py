"""The overview: puts the panels together and lets those go first that matter least."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import BindingType
from textual.containers import Container, Horizontal
from textual.widget import Widget

from appliance.status import TopSnapshot
from appliance.tui import tables
from appliance.tui.screens.page import TALL, WIDE, TablePage
from appliance.tui.told import Told
from appliance.tui.widgets.lines import Alerts, Figure, Gpus, Lines, Log
from appliance.tui.widgets.requests import Requests
from appliance.tui.widgets.throughput import History

_FIGURES, _FIGURES_WHERE_HUGE = 6, 8
_FLAT = (60, 14)
"""Narrower and lower than this nothing takes the figures' place."""
_TABLE_LEAST = 4
"""Lines of the table: its head and three requests."""
_BOXES = 4
_MIDDLE, _MIDDLE_HIGH, _LOG, _LOG_HIGH = 7, 11, 5, 9
_HIGH = 40
_MACHINE_WIDTH = 66


def heights(height: int, alerts: int, machine: int) -> tuple[int, int]:
    """Lines of the graph with the GPUs, and of the log; 0: it has no room.

    height: of a roomy terminal. machine: lines that the GPUs ask for. The table keeps its least.
    """
    free = height - _BOXES - 3 - alerts - _TABLE_LEAST  # three: title, tabs, keys
    middle = _MIDDLE_HIGH if height >= _HIGH else _MIDDLE
    log = _LOG_HIGH if height >= _HIGH else _LOG
    middle = min(max(middle, machine + 2), free)
    return middle, log if free - middle >= log else 0


class Dashboard(TablePage):
    """At 100×28 and more all panels stand at once; below that `l` and `g` swap the lower half."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("l", "show('log')", "logs"),
        ("g", "show('gpus')", "GPUs"),
        ("t", "graph", "graph"),
    ]
    HINTS = (
        ("q", "quit"),
        ("?", "help"),
        ("p", "pause"),
        ("/", "filter"),
        ("1-7", "pages"),
        ("s", "sort"),
        ("l", "logs"),
        ("g", "GPUs"),
        ("t", "graph"),
        ("enter", "detail"),
        ("+-", "interval"),
        ("^p", "commands"),
    )

    def __init__(self, told: Told, number: int = 1) -> None:
        super().__init__(told, number)
        self._lower = "requests"
        self._hidden: set[str] = set()

    def body(self) -> Iterable[Widget]:
        told = self.told
        yield Container(
            *(Figure(index, told) for index in range(_FIGURES_WHERE_HUGE)), id="figures"
        )
        yield Alerts(told, id="alerts")
        yield Horizontal(History(told, id="history"), Gpus(told, id="gpus"), id="middle")
        yield Requests(told.glyphs, id="requests")
        yield Log(told, id="log")

    def draw(self) -> None:
        if self.is_mounted and self.told.shown is not None:
            self.table.show(self.told.shown.requests)
        super().draw()

    @property
    def roomy(self) -> bool:
        width, height = self.room
        return width >= WIDE and height >= TALL

    def alerts_shown(self) -> int:
        return 3 if self.roomy else 1

    def panels_shown(self) -> dict[str, bool]:
        width, height = self.room
        roomy, lower = self.roomy, self._lower
        self.set_class(roomy, "-roomy")
        for index in range(_FIGURES, _FIGURES_WHERE_HUGE):
            self.query_one(f"#figure-{index}").display = roomy and width >= 140
        if roomy:
            return self._all_panels(width, height)
        flat = width < _FLAT[0] and height < _FLAT[1]
        figures_lines = 2 if width >= 80 else 3 if width >= _FLAT[0] else 6
        above = 2 + figures_lines + self.alert_lines()  # two: title and keys
        table = height - above >= _TABLE_LEAST if flat else True
        self.query_one("#gpus").styles.width = "1fr"
        self.query_one("#middle").styles.height = self.query_one("#log").styles.height = "1fr"
        return {
            "figures": True,
            "requests": table and lower == "requests",
            "gpus": not flat and lower == "gpus",
            "log": not flat and lower == "log",
            "history": False,
            "middle": not flat and lower == "gpus",
        }

    def _all_panels(self, width: int, height: int) -> dict[str, bool]:
        gpus = self.query_one("#gpus", Gpus)
        top = self.told.shown or TopSnapshot()
        machine = len(tables.gpu_lines(top, width, self.told.glyphs))
        middle, log = heights(height, self.alert_lines(), machine)
        gpus.styles.width = _MACHINE_WIDTH
        gpus.name_box("GPUs" if top.gpus else "machine")
        self.query_one("#middle").styles.height = middle
        self.query_one("#log").styles.height = log
        return {
            "figures": True,
            "requests": True,
            "gpus": "gpus" not in self._hidden,
            "log": log > 0 and "log" not in self._hidden,
            "history": True,
            "middle": True,
        }

    def action_show(self, panel: str) -> None:
        if self.roomy:
            self._hidden ^= {panel}
        else:
            self._lower = "requests" if self._lower == panel else panel
        self.draw()
        self.query_one(f"#{panel}", Lines).refresh()

    def action_graph(self) -> None:
        self.query_one(History).next_metric()
