"""The pages behind the numbers 2 to 7."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget

from appliance.status import TopSnapshot
from appliance.tui import tables
from appliance.tui.panels.cache import cache_panel
from appliance.tui.panels.gpus import gpu_panel
from appliance.tui.panels.latency import latency_panel
from appliance.tui.panels.run import client_panel, config_panel
from appliance.tui.screens.dashboard import Dashboard
from appliance.tui.screens.page import FilterPage, Page, TablePage
from appliance.tui.text import Line, said
from appliance.tui.told import Told
from appliance.tui.widgets.lines import Alerts, Lines
from appliance.tui.widgets.panel import Drawing, Panel
from appliance.tui.widgets.requests import Requests

_CLIENTS_MOST, _CLIENTS_FROM, _CLIENTS_WIDE = 6, 20, 70
"""Clients shown; above which height, and from which width."""


class RequestsPage(TablePage):
    """Who asks, every request that lives, then those that have ended lately."""

    HINTS = (
        ("q", "quit"), ("?", "help"), ("/", "filter"), ("s", "sort"), ("r", "reverse"),
        ("enter", "detail"), ("y", "copy id"), ("p", "pause"), ("1-7", "pages"),
    )  # fmt: skip

    def body(self) -> Iterable[Widget]:
        def clients(_: Told, top: TopSnapshot, width: int, height: int) -> list[Line]:
            return client_panel(top, width, height, self.told.glyphs)

        yield Alerts(self.told, id="alerts")
        yield Panel(self.told, clients, id="clients")
        yield Requests(self.told.glyphs, id="requests")

    def draw(self) -> None:
        if self.is_mounted and self.told.shown is not None:
            self.table.show(self.told.shown.requests, self.told.shown.finished)
        super().draw()

    def panels_shown(self) -> dict[str, bool]:
        width, height = self.room
        clients = self.told.shown.clients if self.told.shown else []
        lines = min(len(clients), _CLIENTS_MOST, height - _CLIENTS_FROM) + 2
        self.query_one("#clients").styles.height = max(1, lines)
        roomy = height > _CLIENTS_FROM and width >= _CLIENTS_WIDE
        return {"clients": roomy and bool(clients), "requests": True}


class PanelPage(Page):
    """One panel over all the page; what is higher than the page is scrolled."""

    def __init__(self, told: Told, number: int, drawing: Drawing, *, scrolls: bool = False) -> None:
        super().__init__(told, number)
        self._drawing = drawing
        self._scrolls = scrolls

    def body(self) -> Iterable[Widget]:
        yield Alerts(self.told, id="alerts")
        panel = Panel(self.told, self._drawing, scrolls=self._scrolls)
        yield VerticalScroll(panel, id="body")


_WHOLE_TIME_FROM = 100


class LogLines(Lines):
    """The log's lines that hold the words; `back` lines before the newest."""

    can_focus = True

    def __init__(self, told: Told) -> None:
        super().__init__(told, id="body")
        self.words = ""
        self.level = ""
        self.back = 0

    def found(self) -> list[str]:
        lines = self.top.log_tail if self.top else []
        wanted = self.words.removeprefix("!").lower()
        if wanted:
            unwanted = self.words.startswith("!")
            lines = [line for line in lines if (wanted in line.lower()) != unwanted]
        if self.level:
            lines = [line for line in lines if tables.log_level(line)]
        return lines

    def scroll_back(self, lines: int) -> None:
        """Positive: to older ones."""
        most = max(0, len(self.found()) - self.content_size.height)
        self.back = max(0, min(most, self.back + lines))
        self.draw()

    def lines(self, width: int, height: int) -> list[Line]:
        found = self.found()
        end = max(0, len(found) - self.back)
        shown = found[max(0, end - height) : end]
        if not shown:
            return [said(self._why_empty(), "dim")]
        return [
            tables.log_line(line, self.glyphs, short=width < _WHOLE_TIME_FROM) for line in shown
        ]

    def _why_empty(self) -> str:
        if self.top is None:
            return "waiting for the server's first answer"
        if self.words:
            return "no line is left by the filter; Esc clears it"
        if self.level:
            return "no warnings, no errors; w shows every line"
        if self.told.plan.get("refused"):
            return "the log is shown to a key of `appliance key add NAME --admin`"
        return "nothing has been logged yet"


class LogsPage(FilterPage):
    """The run's log; w leaves only warnings and errors."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("w", "warnings", "warnings only"),
        ("up", "back(1)", "older"),
        ("down", "back(-1)", "newer"),
        ("pageup", "back(20)", "older"),
        ("pagedown", "back(-20)", "newer"),
        ("home", "back(100000)", "oldest"),
        ("end", "back(-100000)", "newest"),
    ]
    HINTS = (
        ("q", "quit"), ("?", "help"), ("/", "filter"), ("w", "warnings only"), ("p", "pause"),
        ("1-7", "pages"), ("up", "older"), ("end", "newest"),
    )  # fmt: skip

    def body(self) -> Iterable[Widget]:
        yield LogLines(self.told)

    @property
    def log_lines(self) -> LogLines:
        return self.query_one(LogLines)

    def filtered(self, words: str) -> None:
        self.log_lines.words, self.log_lines.back = words, 0
        self.log_lines.draw()

    def action_warnings(self) -> None:
        self.log_lines.level = "" if self.log_lines.level else "warning"
        self.log_lines.back = 0
        self.log_lines.draw()

    def action_back(self, lines: int) -> None:
        self.log_lines.scroll_back(lines)


def make_pages(told: Told) -> tuple[Page, ...]:
    """In the order of their numbers."""
    g = told.glyphs

    def gpus(_: Told, top: TopSnapshot, width: int, height: int) -> list[Line]:
        return gpu_panel(top, width, height, g)

    def latency(_: Told, top: TopSnapshot, width: int, height: int) -> list[Line]:
        return latency_panel(top, width, height, g)

    def cache(_: Told, top: TopSnapshot, width: int, height: int) -> list[Line]:
        return cache_panel(top, width, height, g)

    def config(told: Told, top: TopSnapshot, width: int, height: int) -> list[Line]:
        return config_panel(top, told.plan, width, g)

    return (
        Dashboard(told, 1),
        RequestsPage(told, 2),
        PanelPage(told, 3, gpus),
        PanelPage(told, 4, latency),
        PanelPage(told, 5, cache),
        LogsPage(told, 6),
        PanelPage(told, 7, config, scrolls=True),
    )
