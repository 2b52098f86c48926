"""The dashboard: seven pages, one poller, the keys that hold everywhere."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import msgspec
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen

from appliance.errors import ApplianceError
from appliance.tui.messages import Away, Planned, Polled
from appliance.tui.picture import plain_svg
from appliance.tui.poller import FEW_LINES, MANY_LINES, Poller
from appliance.tui.screens.dashboard import Dashboard
from appliance.tui.screens.dialogs import CHANGES_HELP, HELP, Detail, Help, Question
from appliance.tui.screens.page import NAMES, Asked, Page, TablePage
from appliance.tui.screens.pages import LogsPage, make_pages
from appliance.tui.source import Source
from appliance.tui.terminal import draws_ascii_only, end_with_terminal
from appliance.tui.text import ASCII, UNICODE
from appliance.tui.told import Told
from appliance.tui.widgets.requests import Requests

_DRAIN_S = 30.0
_LOGS = NAMES.index("logs")


class TopApp(App[None]):
    """Draws what its source says until the user leaves. readonly: no key changes anything."""

    CSS_PATH = "dashboard.tcss"
    TITLE = "appliance top"
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q,ctrl+c", "quit", "quit"),
        ("question_mark,h,f1", "help", "help"),
        ("p,space", "pause", "pause"),
        ("plus,equals_sign", "faster", "ask more often"),
        ("minus", "slower", "ask less often"),
        ("S", "save", "save a snapshot"),
        ("D", "light", "light or dark"),
        *((str(number), f"page({number})", name) for number, name in enumerate(NAMES, 1)),
        Binding("tab", "turn(1)", "next page", priority=True),
        Binding("shift+tab", "turn(-1)", "previous page", priority=True),
    ]

    def __init__(
        self,
        source: Source,
        *,
        interval: float = 0.5,
        ascii: bool = False,
        readonly: bool = False,
        inline: bool = False,
        label: str = "",
    ) -> None:
        super().__init__()
        self.use_command_palette = not ascii  # it draws with more than ASCII
        self.readonly = readonly
        self._source = source
        glyphs = ASCII if ascii else UNICODE
        self.told = Told(glyphs, label=label, readonly=readonly, inline=inline)
        self.pages = make_pages(self.told)
        first = self.pages[0]
        assert isinstance(first, Dashboard)
        self.dashboard = first
        self.page: Page = first
        self.poller = Poller(source, interval, self._tell)
        if not readonly:
            self.bind("k", "cancel", description="cancel the request")
            self.bind("d", "drain", description="drain and stop")

    def _tell(self, message: Message) -> None:
        """Called by the poller's thread."""
        if self.is_running:
            self.post_message(message)

    def on_mount(self) -> None:
        self.animation_level = "none"
        self.set_class(self.told.glyphs.ascii, "-ascii")
        for number, page in enumerate(self.pages, 1):
            self.install_screen(page, f"page-{number}")
        self.push_screen("page-1")
        self.poller.start()

    def on_unmount(self) -> None:
        self.poller.stop()

    def on_polled(self, message: Polled) -> None:
        self.told.take(message.snapshot)
        self._draw()

    def on_away(self, message: Away) -> None:
        self.told.away_since, self.told.why_away = message.since, message.why
        self._draw()

    def on_planned(self, message: Planned) -> None:
        self.told.plan = message.plan

    def _draw(self) -> None:
        self.page.draw()
        if isinstance(self.screen, Detail):
            self.screen.draw()

    def action_page(self, number: int) -> None:
        page = self.pages[number - 1]
        if page is self.page or self.screen is not self.page:
            return
        self.page = page
        self.poller.lines = MANY_LINES if number - 1 == _LOGS else FEW_LINES
        self.poller.hurry()
        self.switch_screen(f"page-{number}")

    def action_turn(self, step: int) -> None:
        self.action_page((self.page.number - 1 + step) % len(self.pages) + 1)

    def action_pause(self) -> None:
        self.told.pause()
        self._draw()

    def action_help(self) -> None:
        self.push_screen(Help(HELP if self.readonly else f"{HELP}\n{CHANGES_HELP}"))

    def action_faster(self) -> None:
        self.poller.faster()
        self.notify(f"every {self.poller.interval:g} s", timeout=2, markup=False)

    def action_slower(self) -> None:
        self.poller.slower()
        self.notify(f"every {self.poller.interval:g} s", timeout=2, markup=False)

    def action_light(self) -> None:
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"
        for page in self.pages:
            for table in page.query(Requests) if page.is_mounted else ():
                table.restyle()
        for widget in self.page.query("*"):
            widget.refresh()

    def action_save(self) -> None:
        """The snapshot as JSON and the screen as SVG, where this was started."""
        stem = f"appliance-top-{datetime.now():%Y%m%d-%H%M%S}"
        top = self.told.shown
        try:
            Path(f"{stem}.svg").write_text(plain_svg(self.export_screenshot()), encoding="utf-8")
            plain = msgspec.to_builtins(top) if top else {}
            Path(f"{stem}.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
        except OSError as problem:
            self.notify(f"not saved: {problem.strerror}", severity="error", markup=False)
            return
        self.notify(f"saved {Path(stem).resolve()}.json and .svg", markup=False)

    def on_asked(self, message: Asked) -> None:
        cancel = None if self.readonly else self._ask_to_cancel
        self.push_screen(Detail(self.told, message.id, self._show_logs_of, cancel))

    def _show_logs_of(self, id: str) -> None:
        def filtered() -> None:
            page = self.pages[_LOGS]
            assert isinstance(page, LogsPage)
            page.filter_by(id)

        self.action_page(_LOGS + 1)
        self.call_later(filtered)

    def action_cancel(self) -> None:
        if isinstance(self.page, TablePage) and self.page.chosen:
            self._ask_to_cancel(self.page.chosen)

    def _ask_to_cancel(self, id: str) -> None:
        row = self.told.request(id)
        if row is None or row.phase == "done":
            self.notify("this request has ended", timeout=2, markup=False)
            return
        self._ask(f"Cancel request {id}? Its client gets an error.", lambda: self._cancel(id))

    def _cancel(self, id: str) -> None:
        self._source.cancel(id)
        if self.is_running:
            self.call_from_thread(self.notify, f"cancelled {id}", timeout=3, markup=False)

    def action_drain(self) -> None:
        self._ask(
            f"Stop this run? Live requests have {_DRAIN_S:g} s to finish.",
            lambda: self._source.down(_DRAIN_S),
        )

    def _ask(self, question: str, then: Callable[[], None]) -> None:
        """then: in a thread of its own, for it may last as long as the requests do."""

        def work() -> None:
            try:
                then()
            except ApplianceError as problem:
                if self.is_running:
                    self.call_from_thread(
                        self.notify, problem.message, severity="error", markup=False
                    )

        def answered(yes: bool | None) -> None:
            if yes:
                threading.Thread(target=work, name="change", daemon=True).start()

        self.push_screen(Question(question), answered)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        for number, name in enumerate(NAMES, 1):
            help = f"page {number}"
            yield SystemCommand(name, help, lambda number=number: self.action_page(number))
        yield SystemCommand("pause", "keep this frame, or go on", self.action_pause)
        yield SystemCommand("light or dark", "the other theme", self.action_light)
        yield SystemCommand("save", "JSON and SVG of this moment", self.action_save)
        yield SystemCommand("help", "the keys", self.action_help)
        if not self.readonly:
            yield SystemCommand("cancel request", "the one under the cursor", self.action_cancel)
            yield SystemCommand("drain", "finish what lives and stop the run", self.action_drain)
        yield SystemCommand("quit", "the server keeps running", self.exit)


def run(
    source: Source,
    *,
    interval: float = 0.5,
    ascii: bool = False,
    readonly: bool = False,
    inline: bool = False,
    label: str = "",
) -> None:
    """Shows the dashboard on this terminal until the user leaves; the run goes on."""
    app = TopApp(
        source,
        interval=interval,
        ascii=ascii or draws_ascii_only(),
        readonly=readonly,
        inline=inline,
        label=label,
    )
    end_with_terminal(sys.stdout.fileno())
    app.run(mouse=False, inline=inline)
