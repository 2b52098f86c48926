"""What a parser finds in an answer, gathered until it is taken: text, thoughts, tool calls."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from appliance.runtime.text.tape import SPACE
from appliance.runtime.wire.text import CallDelta


def long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class Sink:
    """White space between calls and around thoughts belongs to the model's form, not to the text.

    parallel: False drops every call but the first. thinking: what comes now is thought.
    silent: text is dropped, since only calls may come.
    """

    def __init__(self, parallel: bool = True, make_id: Callable[[], str] = long_id) -> None:
        self.thinking = False
        self.silent = False
        self.calls = 0
        self._parallel, self._make_id = parallel, make_id
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._deltas: list[CallDelta] = []
        self._space: list[str] = []
        self._trim = False
        self._began_text = False
        self._began_thought = False
        self._thought_space: list[str] = []
        self._dropping = False

    def text(self, text: str) -> None:
        if self.silent:
            return
        if self._trim:
            text = text.lstrip(" \t\r\n")
            self._trim = not text
        if not text:
            return
        if text[-1] in SPACE:
            body = text.rstrip(" \t\r\n")
            space = text[len(body) :]
        else:
            body, space = text, ""
        if body:
            self._began_text = True
            self._text += self._space
            self._text.append(body)
            self._space.clear()
        if space:
            self._space.append(space)

    def thought(self, text: str) -> None:
        if not self._began_thought:
            text = text.lstrip(" \t\r\n")
        if not text:
            return
        self._began_thought = True
        body = text.rstrip(" \t\r\n")
        if body:
            self._thoughts += self._thought_space
            self._thoughts.append(body)
            self._thought_space.clear()
        if len(body) < len(text):
            self._thought_space.append(text[len(body) :])

    def end_thought(self) -> None:
        """A further thought begins on a line of its own."""
        self.thinking = False
        self._thought_space = ["\n"] if self._began_thought else []
        if not self._began_text and not self.calls:
            self._space.clear()
            self._trim = True

    def begin_call(self, name: str, id: str = "") -> None:
        self._space.clear()
        self._trim = not self._began_text
        self._dropping = self.calls > 0 and not self._parallel
        if not self._dropping:
            self._deltas.append(CallDelta(self.calls, "", id or self._make_id(), name))
            self.calls += 1

    def arguments(self, text: str) -> None:
        if text and not self._dropping:
            self._deltas.append(CallDelta(self.calls - 1, text))

    def finish(self) -> None:
        if not self.calls:
            self._text += self._space
        self._space.clear()

    def take(self) -> tuple[str, str, tuple[CallDelta, ...]]:
        """Text, thoughts and calls since the last time; deltas of one call are one."""
        text, thoughts = "".join(self._text), "".join(self._thoughts)
        calls = merge_calls(self._deltas) if self._deltas else ()
        self._text, self._thoughts, self._deltas = [], [], []
        return text, thoughts, calls


def merge_calls(deltas: list[CallDelta]) -> tuple[CallDelta, ...]:
    out: list[CallDelta] = []
    at = 0
    while at < len(deltas):
        first, pieces = deltas[at], [deltas[at].arguments]
        at += 1
        while at < len(deltas) and deltas[at].index == first.index:
            pieces.append(deltas[at].arguments)
            at += 1
        out.append(CallDelta(first.index, "".join(pieces), first.id, first.name))
    return tuple(out)
