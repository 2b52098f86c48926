"""Screens that lie over a page: help, a question before something is done, one request."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Static

from appliance.tui.panels.run import request_detail
from appliance.tui.styles import STYLES
from appliance.tui.text import ask_by_curl, fit_line, said
from appliance.tui.told import Told

HELP = """\
q, Ctrl-C   quit; the server keeps running
1-7, Tab    pages: overview, requests, GPUs,
            latency, cache, logs, config
p, Space    pause the view, and go on
/           filter; !word leaves out; Esc clears
s , .  r    sort by another column; reverse
Enter       all that is known of a request
y  Y        copy a request's id; a curl command
l  g  t     log, GPUs, the graph's figure
w           logs: warnings and errors only
+  -        ask more often, less often
S  D        save a snapshot; light or dark
Ctrl-P      every command by name
? h F1      this help; arrows scroll it, any
            other key closes it"""

CHANGES_HELP = """\
k           cancel a request (asks first)
d           drain and stop the run (asks first)"""


_SCROLLS = frozenset({"up", "down", "pageup", "pagedown", "home", "end"})


class Help(ModalScreen[None]):
    """Arrows scroll it where it is higher than the terminal; any other key closes it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield VerticalScroll(Static(Text(self._text)), id="help")

    def on_key(self, event: Key) -> None:
        if event.key not in _SCROLLS:
            self.dismiss()


class Question(ModalScreen[bool]):
    """y says yes; n and Esc say no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("y", "answer(True)", "yes"),
        ("n,escape,q", "answer(False)", "no"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Static(Text(f"{self._text}\n\ny yes   n no"), id="question")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)


class Detail(ModalScreen[None]):
    """One request, drawn anew while it lives.

    logs: shows the log's lines that name it. cancel: asks, then ends it; None: not allowed.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,enter,q", "close", "back"),
        ("y", "copy", "copy the id"),
        ("Y", "copy_curl", "copy a curl command"),
        ("l", "logs", "its log lines"),
    ]

    def __init__(
        self,
        told: Told,
        id: str,
        logs: Callable[[str], None],
        cancel: Callable[[str], None] | None,
    ) -> None:
        super().__init__()
        self.told = told
        self._cancel = cancel
        self.request_id = id
        self._logs = logs
        self._row = told.request(id)

    def compose(self) -> ComposeResult:
        yield Static(self._text(), id="detail")

    def draw(self) -> None:
        if self.is_mounted:
            self.query_one("#detail", Static).update(self._text())

    def _text(self) -> Text:
        self._row = self.told.request(self.request_id) or self._row
        if self._row is None:
            return Text("this request has gone")
        glyphs, top = self.told.glyphs, self.told.newest
        width = max(20, min(100, self.app.size.width - 6))
        lines = request_detail(self._row, top.log_tail if top else (), glyphs)
        keys = "Esc back   y copy id   Y curl   l log" + ("   k cancel" if self._cancel else "")
        styles = STYLES[self.app.current_theme.dark]
        text = Text(no_wrap=True)
        for line in [*lines, said(""), said(keys, "dim")]:
            for style, part in fit_line(line, width, glyphs):
                text.append(part, styles[style] or None)
            text.rstrip()
            text.append("\n")
        text.rstrip()
        return text

    def on_key(self, event: Key) -> None:
        if event.key == "k" and self._cancel is not None:
            self._cancel(self.request_id)

    def action_close(self) -> None:
        self.dismiss()

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self.request_id)
        self.notify("copied", timeout=2)

    def action_copy_curl(self) -> None:
        if self.told.newest is not None:
            self.app.copy_to_clipboard(ask_by_curl(self.told.newest))
            self.notify("copied a curl command that asks this server", timeout=2)

    def action_logs(self) -> None:
        self.dismiss()
        self._logs(self.request_id)
