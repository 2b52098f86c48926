"""The model's text, one character at a time, to a parser written as a coroutine.

A parser reads with `c = yield from tape.read()`, so how the text was cut cannot matter, and each
character costs constant work. "" is the end of the answer; it comes again if read again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from appliance.runtime.text.stop import StopAutomaton

T = TypeVar("T")
Reading = Generator[None, str, T]
Put = Callable[[str], object]

SPACE = frozenset(" \t\r\n")
MAX_HELD = 1 << 16
"""Characters kept back at most while it is open whether they are a call."""


class Tape:
    def __init__(self) -> None:
        self.ended = False
        self._back: list[str] = []
        self._record: list[str] | None = None
        self._idle: tuple[frozenset[str], Put] | None = None
        self._program: Reading[None] | None = None

    def run(self, program: Reading[None]) -> None:
        self._program = program
        self._send("", first=True)

    def feed(self, text: str) -> None:
        idle = self._idle
        if idle is not None and idle[0].isdisjoint(text):
            idle[1](text)
            return
        for c in text:
            self._send(c)

    def finish(self) -> None:
        self.ended = True
        self._send("")

    def _send(self, c: str, first: bool = False) -> None:
        if self._program is None:
            return
        try:
            if first:
                next(self._program)
            else:
                self._program.send(c)
        except StopIteration:
            self._program = None

    def read(self) -> Reading[str]:
        """The next character; "" at the end of the answer."""
        if self._back:
            c = self._back.pop()
        elif self.ended:
            return ""
        else:
            c = yield
        if c and self._record is not None:
            self._record.append(c)
        return c

    def unread(self, text: str) -> None:
        """What was read last is read again."""
        if text:
            self._back.extend(reversed(text))
            if self._record is not None:
                del self._record[-len(text) :]

    # Keeping text back until it is known what it is

    def hold(self, text: str = "") -> None:
        """From here on what is read can be had back by `release`. text: read already."""
        self._record = [text]

    def release(self) -> str:
        held, self._record = "".join(self._record or ()), None
        return held

    @property
    def too_long(self) -> bool:
        return self._record is not None and len(self._record) > MAX_HELD

    # Reading

    def until(self, put: Put, marks: StopAutomaton) -> Reading[str]:
        """Puts what stands before the next mark; returns the mark, "" at the end of the answer, or
        when more is held than may be."""
        state, held = 0, ""
        while True:
            if state == 0 and not self._back and self._record is None:
                self._idle = (marks.first, put)
            c = yield from self.read()
            self._idle = None
            if not c or self.too_long:
                put(held + c)
                return ""
            state = marks.next(state, c)
            held += c
            mark = marks.match[state]
            if mark is not None:
                put(held[: -len(mark)])
                return mark
            keep = marks.depth[state]
            if len(held) > keep:
                put(held[: len(held) - keep])
                held = held[len(held) - keep :]

    def skip_space(self) -> Reading[str]:
        """The first character that is none; it counts as read."""
        while True:
            c = yield from self.read()
            if c not in SPACE or not c:
                return c

    def literal(self, text: str) -> Reading[bool]:
        """Whether `text` comes next. When not, nothing was read."""
        read = ""
        for want in text:
            c = yield from self.read()
            read += c
            if c != want:
                self.unread(read)
                return False
        return True


def marks(*texts: str) -> StopAutomaton:
    return StopAutomaton(texts)
