"""The overview: puts the panels together and gives each what the poller said."""

from __future__ import annotations

from time import monotonic
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Horizontal
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Input, Static

from appliance.status import TopSnapshot
from appliance.tui.figures import Glyphs
from appliance.tui.messages import Away, Polled
from appliance.tui.widgets.lines import Alerts, Figure, Gpus, Keys, Lines, Log, Title
from appliance.tui.widgets.requests import Requests
from appliance.tui.widgets.throughput import History

SMALLEST = (40, 10)
_WIDE, _TALL = 100, 28
_AWAY_TICK_S = 1.0


class Dashboard(Screen[None]):
    """At 100×28 and more all panels stand at once; below that `l` and `g` swap the lower half."""

    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012
        (0, "-tiny"),
        (60, "-narrow"),
        (80, "-medium"),
        (_WIDE, "-wide"),
    ]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (40, "-high")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        ("p,space", "pause", "pause"),
        ("slash", "filter", "filter"),
        ("escape", "clear_filter", "clear the filter"),
        ("s,full_stop", "sort(1)", "sort"),
        ("comma", "sort(-1)", "sort backwards"),
        ("r", "reverse", "reverse"),
        ("l", "show('log')", "logs"),
        ("g", "show('gpus')", "GPUs"),
        ("t", "graph", "graph"),
    ]

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__()
        self.glyphs = glyphs
        self.paused = False
        self.newest: TopSnapshot | None = None
        self.away_since: float | None = None
        self._lower = "requests"
        self._hidden: set[str] = set()

    def compose(self) -> ComposeResult:
        g = self.glyphs
        yield Static(id="too-small", markup=False)
        yield Title(g, id="title")
        with Container(id="figures"):
            for index in range(6):
                yield Figure(index, g)
        yield Alerts(g, id="alerts")
        with Horizontal(id="middle"):
            yield History(g, id="history")
            yield Gpus(g, id="gpus")
        yield Requests(g, id="requests")
        yield Log(g, id="log")
        yield Input(placeholder="filter requests; ! leaves out", id="filter")
        yield Keys(g, id="keys")

    def on_mount(self) -> None:
        self.set_class(self.glyphs.ascii, "-ascii")
        self.query_one("#requests").focus()
        self.query_one("#filter").display = False
        self.set_interval(_AWAY_TICK_S, self._tell_away)
        self._arrange()

    def on_polled(self, message: Polled) -> None:
        self.newest = message.snapshot
        was_away, self.away_since = self.away_since is not None, None
        self.query_one(Alerts).why_away = ""
        if was_away:
            self._tell_away()
        if not self.paused:
            self._show_newest()

    def on_away(self, message: Away) -> None:
        self.away_since = message.since
        alerts = self.query_one(Alerts)
        alerts.why_away = message.why
        self._tell_away()
        self._arrange()
        alerts.refresh()

    def _tell_away(self) -> None:
        title = self.query_one(Title)
        since = self.away_since
        title.away_s = None if since is None else max(0.0, monotonic() - since)
        title.paused = self.paused
        title.refresh()

    def _show_newest(self) -> None:
        if self.newest is None:
            return
        for lines in self.query(Lines):
            lines.show(self.newest)
        self.query_one(Requests).show(self.newest.requests)
        self._arrange()

    def on_resize(self, event: Resize) -> None:
        self._arrange()

    @property
    def roomy(self) -> bool:
        return self.size.width >= _WIDE and self.size.height >= _TALL

    def _arrange(self) -> None:
        """Shows the panels that have room; the least important go first."""
        width, height = self.size
        self.set_class(self.roomy, "-roomy")
        small = width < SMALLEST[0] or height < SMALLEST[1]
        flat = height < 14
        roomy = self.roomy
        shown = {
            "requests": not flat and (roomy or self._lower == "requests"),
            "gpus": "gpus" not in self._hidden if roomy else not flat and self._lower == "gpus",
            "log": "log" not in self._hidden if roomy else not flat and self._lower == "log",
            "history": roomy,
            "middle": roomy or (not flat and self._lower == "gpus"),
            "title": True,
            "figures": True,
            "keys": True,
        }
        alerts = self.query_one(Alerts)
        count = min(len(alerts.found()), 3 if roomy else 1)
        shown["alerts"] = count > 0
        alerts.styles.height = max(1, count)
        for name, visible in shown.items():
            self.query_one(f"#{name}").display = visible and not small
        notice = self.query_one("#too-small", Static)
        notice.display = small
        times = "x" if self.glyphs.ascii else "×"
        notice.update(
            f"needs {SMALLEST[0]}{times}{SMALLEST[1]}, this is {width}{times}{height}; "
            "`appliance top --once` prints the figures"
        )
        self.query_one("#gpus").styles.width = "1fr" if not roomy else 60

    def action_pause(self) -> None:
        self.paused = not self.paused
        self._tell_away()
        if not self.paused:
            self._show_newest()

    def action_show(self, panel: str) -> None:
        if self.roomy:
            self._hidden ^= {panel}
        else:
            self._lower = "requests" if self._lower == panel else panel
        self._arrange()
        if self.newest is not None:
            self.query_one(f"#{panel}", Lines).refresh()

    def action_graph(self) -> None:
        self.query_one(History).next_metric()

    def action_sort(self, step: int) -> None:
        self.query_one(Requests).sort_by_next(step)

    def action_reverse(self) -> None:
        self.query_one(Requests).reverse()

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def action_clear_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.value = ""
        self._leave_filter()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.query_one(Requests).filter(event.value)

    def on_input_submitted(self) -> None:
        self._leave_filter()

    def _leave_filter(self) -> None:
        """The field stays in sight as long as it leaves something out."""
        field = self.query_one("#filter", Input)
        field.display = bool(field.value)
        self.query_one(Requests).focus()
