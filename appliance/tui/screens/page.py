"""What every page has: title, tabs, alerts, keys; and the two kinds that can filter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.events import Resize
from textual.message import Message
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import DataTable, Input, Static

from appliance.tui.tables import no_requests
from appliance.tui.text import ask_by_curl
from appliance.tui.told import Told
from appliance.tui.widgets.lines import Alerts, Keys, Lines, Tabs, Title
from appliance.tui.widgets.requests import Requests

NAMES = ("overview", "requests", "GPUs", "latency", "cache", "logs", "config")
SMALLEST = (40, 10)
INLINE_HEIGHT = 12
WIDE, TALL = 100, 28
TABS_FROM = 20
_WRAPS_FROM = 20
"""Height from which an alert that is too long for a line has two."""
_AWAY_TICK_S = 1.0


class Asked(Message):
    """The user wants a request's details."""

    def __init__(self, id: str) -> None:
        super().__init__()
        self.id = id


class Page(Screen[None]):
    """Draws from `told`; says which panels have room in `panels_shown`."""

    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012
        (0, "-tiny"),
        (60, "-narrow"),
        (80, "-medium"),
        (WIDE, "-wide"),
        (140, "-huge"),
    ]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (40, "-high")]  # noqa: RUF012
    AUTO_FOCUS = "#body"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("q", "quit"),
        ("?", "help"),
        ("p", "pause"),
        ("1-7", "pages"),
        ("+-", "interval"),
    )

    def __init__(self, told: Told, number: int) -> None:
        super().__init__()
        self.told = told
        self.number = number

    def body(self) -> Iterable[Widget]:
        """The widgets between the alerts and the keys."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        told = self.told
        yield Static(id="too-small", markup=False)
        yield Title(told, id="title")
        yield Tabs(told, NAMES, self.number)
        yield from self.body()
        yield Keys(told, self.HINTS, id="keys")

    def on_mount(self) -> None:
        self.set_class(self.told.glyphs.ascii, "-ascii")
        self.set_class(self.told.inline, "-inline")
        self.set_interval(_AWAY_TICK_S, self._tick)
        self._fold()

    def on_screen_resume(self) -> None:
        self.draw()

    def on_resize(self, event: Resize) -> None:
        self._fold()

    def draw(self) -> None:
        """Everything again, from what was told."""
        if not self.is_mounted:
            return
        for lines in self.query(Lines):
            lines.draw()
        self._fold()

    def _tick(self) -> None:
        if self.told.away_since is not None and self.is_current:
            self.query_one(Title).draw()

    @property
    def room(self) -> tuple[int, int]:
        """Width and height to draw in."""
        width, height = self.size
        return width, min(height, INLINE_HEIGHT) if self.told.inline else height

    @property
    def small(self) -> bool:
        width, height = self.room
        return width < SMALLEST[0] or height < SMALLEST[1]

    def panels_shown(self) -> dict[str, bool]:
        """Which of the page's own panels, by id, have room."""
        return {}

    def alerts_shown(self) -> int:
        return 1

    def alert_lines(self) -> int:
        """How many lines the alerts take."""
        width, height = self.room
        alerts = self.query_one("#alerts", Alerts)
        alerts.most, alerts.tall = self.alerts_shown(), height >= _WRAPS_FROM
        return len(alerts.lines(width - 2, height))

    def _fold(self) -> None:
        if not self.is_mounted:
            return
        width, height = self.room
        small = self.small
        shown = {"title": True, "keys": True, "tabs": height >= TABS_FROM, **self.panels_shown()}
        for alerts in self.query(Alerts):
            count = self.alert_lines()
            shown["alerts"] = count > 0
            alerts.styles.height = max(1, count)
        for name, visible in shown.items():
            self.query_one(f"#{name}").display = visible and not small
        notice = self.query_one("#too-small", Static)
        notice.display = small
        if small:
            times = "x" if self.told.glyphs.ascii else "×"
            notice.update(
                f"needs {SMALLEST[0]}{times}{SMALLEST[1]}, this is {width}{times}{height}; "
                "`appliance top --once` prints the figures"
            )


class FilterPage(Page):
    """Has a field for words that what is listed must hold; `!words`: must not."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("slash", "filter", "filter"),
        ("escape", "clear_filter", "clear the filter"),
    ]
    LIST = "#body"
    """What has the keys while nobody types."""

    def compose(self) -> ComposeResult:
        *above, keys = super().compose()
        yield from above
        yield Input(placeholder="filter; ! leaves out", id="filter")
        yield keys

    def on_mount(self) -> None:
        self.query_one("#filter").display = False
        self.query_one(self.LIST).focus()

    def filtered(self, words: str) -> None:
        raise NotImplementedError

    def filter_by(self, words: str) -> None:
        """As if the user had typed it."""
        self.query_one("#filter", Input).value = words
        self._leave_filter()

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def action_clear_filter(self) -> None:
        self.filter_by("")

    def on_input_changed(self, event: Input.Changed) -> None:
        self.filtered(event.value)

    def on_input_submitted(self) -> None:
        self._leave_filter()

    def _leave_filter(self) -> None:
        """The field stays in sight as long as it leaves something out."""
        field = self.query_one("#filter", Input)
        field.display = bool(field.value)
        self.query_one(self.LIST).focus()


class TablePage(FilterPage):
    """Has the table of requests."""

    LIST = "#requests"
    BINDINGS: ClassVar[list[BindingType]] = [
        ("s,full_stop", "sort(1)", "sort"),
        ("comma", "sort(-1)", "sort backwards"),
        ("r", "reverse", "reverse"),
        ("y", "copy", "copy the id"),
        ("Y", "copy_curl", "copy a curl command"),
    ]

    @property
    def table(self) -> Requests:
        return self.query_one(Requests)

    @property
    def chosen(self) -> str:
        """The id of the request under the cursor; empty when none is in sight."""
        return self.table.chosen if self.table.display else ""

    def filtered(self, words: str) -> None:
        self.table.filter(words)
        self.tell_empty()

    def tell_empty(self) -> None:
        self.table.tell(no_requests(self.told.shown, self.table.words, self.told.glyphs))

    def draw(self) -> None:
        super().draw()
        if self.is_mounted:
            self.tell_empty()

    def action_sort(self, step: int) -> None:
        self.table.sort_by_next(step)

    def action_reverse(self) -> None:
        self.table.reverse()

    def action_copy(self) -> None:
        if self.chosen:
            self.app.copy_to_clipboard(self.chosen)
            self.notify(f"copied {self.chosen}", timeout=2, markup=False)

    def action_copy_curl(self) -> None:
        if self.told.shown is not None:
            self.app.copy_to_clipboard(ask_by_curl(self.told.shown))
            self.notify("copied a curl command that asks this server", timeout=2)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        if self.chosen:
            self.app.post_message(Asked(self.chosen))
