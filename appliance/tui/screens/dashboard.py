"""The overview: puts the panels together and lets those go first that matter least."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import BindingType
from textual.containers import Container, Horizontal
from textual.widget import Widget

from appliance.tui.screens.page import TALL, WIDE, TablePage
from appliance.tui.told import Told
from appliance.tui.widgets.lines import Alerts, Figure, Gpus, Lines, Log
from appliance.tui.widgets.requests import Requests
from appliance.tui.widgets.throughput import History

_FIGURES, _FIGURES_WHERE_HUGE = 6, 8
_FLAT = (60, 14)
"""Narrower and lower than this there are figures only."""


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
        super().draw()
        if self.is_mounted and self.told.shown is not None:
            self.table.show(self.told.shown.requests)

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
        flat = width < _FLAT[0] and height < _FLAT[1]
        for index in range(_FIGURES, _FIGURES_WHERE_HUGE):
            self.query_one(f"#figure-{index}").display = roomy and width >= 140
        self.query_one("#gpus").styles.width = 60 if roomy else "1fr"
        return {
            "figures": True,
            "requests": not flat and (roomy or lower == "requests"),
            "gpus": "gpus" not in self._hidden if roomy else not flat and lower == "gpus",
            "log": "log" not in self._hidden if roomy else not flat and lower == "log",
            "history": roomy,
            "middle": roomy or (not flat and lower == "gpus"),
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
