"""Screens that lie over the dashboard: the help, and a question before something is done."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import ModalScreen
from textual.widgets import Static

HELP = """\
q, Ctrl-C   quit; the server keeps running
p, Space    pause the view, and go on
/           filter requests; !word leaves out; Esc clears
s , .       sort by the next, previous, next column
r           reverse the order
l  g        show or hide the log, the GPUs
t           graph: the next figure
+  -        ask more often, less often
? h F1      this help; any key closes it"""

DRAIN_HELP = "d           drain and stop the run (asks first)"


class Help(ModalScreen[None]):
    """Any key closes it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Static(Text(self._text), id="help")

    def on_key(self) -> None:
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
