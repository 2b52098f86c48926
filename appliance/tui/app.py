"""The dashboard: one screen, one poller, the keys that hold everywhere."""

from __future__ import annotations

import locale
import threading
from typing import ClassVar

from textual.app import App
from textual.binding import BindingType
from textual.message import Message

from appliance.client import Client
from appliance.errors import ApplianceError
from appliance.tui.figures import ASCII, UNICODE
from appliance.tui.poller import Poller, Source
from appliance.tui.screens.dashboard import Dashboard
from appliance.tui.screens.dialogs import DRAIN_HELP, HELP, Help, Question

_ANSWER_WITHIN_S = 2.0
_DRAIN_S = 30.0


class TopApp(App[None]):
    """Draws what its source says until the user leaves. readonly: no key changes anything."""

    CSS_PATH = "dashboard.tcss"
    ENABLE_COMMAND_PALETTE = False
    TITLE = "appliance top"
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q,ctrl+c", "quit", "quit"),
        ("question_mark,h,f1", "help", "help"),
        ("plus,equals_sign", "faster", "ask more often"),
        ("minus", "slower", "ask less often"),
        ("d", "drain", "drain and stop"),
    ]

    def __init__(
        self, source: Source, *, interval: float = 0.5, ascii: bool = False, readonly: bool = False
    ) -> None:
        super().__init__()
        self.readonly = readonly
        self._source = source
        self.dashboard = Dashboard(ASCII if ascii else UNICODE)
        self.poller = Poller(source, interval, self._tell)

    def get_default_screen(self) -> Dashboard:
        return self.dashboard

    def _tell(self, message: Message) -> None:
        """Called by the poller's thread."""
        if self.is_running:
            self.dashboard.post_message(message)

    def on_mount(self) -> None:
        self.animation_level = "none"
        self.poller.start()

    def on_unmount(self) -> None:
        self.poller.stop()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return not (action == "drain" and self.readonly)

    def action_help(self) -> None:
        self.push_screen(Help(HELP if self.readonly else f"{HELP}\n{DRAIN_HELP}"))

    def action_faster(self) -> None:
        self.poller.faster()
        self.notify(f"every {self.poller.interval:g} s", timeout=2, markup=False)

    def action_slower(self) -> None:
        self.poller.slower()
        self.notify(f"every {self.poller.interval:g} s", timeout=2, markup=False)

    def action_drain(self) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                threading.Thread(target=self._drain, name="drain", daemon=True).start()

        self.push_screen(
            Question(f"Stop this run? Live requests have {_DRAIN_S:g} s to finish."), answered
        )

    def _drain(self) -> None:
        """In a thread of its own: it lasts as long as the requests do."""
        try:
            self._source.down(_DRAIN_S)
        except ApplianceError as problem:
            if self.is_running:
                self.call_from_thread(self.notify, problem.message, severity="error", markup=False)


def run(
    client: Client, *, interval: float = 0.5, ascii: bool = False, readonly: bool = False
) -> None:
    """Shows the dashboard on this terminal until the user leaves; the run goes on."""
    poor = "utf" not in locale.getpreferredencoding(False).lower().replace("-", "")
    source = Client(client.socket, timeout=min(client.timeout, _ANSWER_WITHIN_S))
    TopApp(source, interval=interval, ascii=ascii or poor, readonly=readonly).run(mouse=False)
