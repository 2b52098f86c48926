"""The forms in which models write tool calls, as coroutines over the answer's characters.

Each runs to the end of the answer. What looks like a call and is none stays text.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from appliance.runtime.text.sink import Sink
from appliance.runtime.text.tape import Reading, Tape, marks
from appliance.runtime.text.tools.calls import (
    Tools,
    closing,
    copy_value,
    discard,
    json_call,
    json_calls,
    well_named,
)
from appliance.runtime.text.tools.pythonic import pythonic_calls


def hermes(tape: Tape, sink: Sink, tools: Tools) -> Reading[None]:
    """<tool_call>{"name": …, "arguments": {…}}</tool_call>"""
    opening = marks("<tool_call>")
    while mark := (yield from tape.until(sink.text, opening)):
        tape.hold(mark)
        c = yield from tape.skip_space()
        called = False
        if c == "{":
            called = yield from json_call(tape, sink, None)
        elif c == "[":
            called = yield from json_calls(tape, sink, None)
        else:
            tape.unread(c)
        if called:
            yield from closing(tape, "</tool_call>")
        else:
            sink.text(tape.release())


class Bare(NamedTuple):
    """Calls that are the whole answer, or stand behind a mark: JSON objects with `;` or a new line
    between them, a JSON list, or a list in Python's form."""

    opening: tuple[str, ...] = ()

    def __call__(self, tape: Tape, sink: Sink, tools: Tools) -> Reading[None]:
        opening = marks(*self.opening)
        while True:
            tape.hold()
            yield from self._calls(tape, sink, tools)
            if not (yield from tape.until(sink.text, opening)):
                return

    def _calls(self, tape: Tape, sink: Sink, tools: Tools) -> Reading[None]:
        c = yield from tape.skip_space()
        fenced = c == "`" and (yield from tape.literal("``json"))
        if fenced:
            c = yield from tape.skip_space()
        while True:
            called = False
            if c == "{":
                called = yield from json_call(tape, sink, tools.names)
            elif c == "[":
                called = yield from self._list(tape, sink, tools)
            else:
                tape.unread(c)
            if not called:
                sink.text(tape.release())
                return
            if fenced and (yield from closing(tape, "```")):
                fenced = False
            c = yield from tape.skip_space()
            if c and c in ";,":
                tape.hold(c)
                c = yield from tape.skip_space()
            elif c == "{":
                tape.hold(c)
            else:
                tape.unread(c)
                return
            if not c:
                tape.release()
                return

    def _list(self, tape: Tape, sink: Sink, tools: Tools) -> Reading[bool]:
        c = yield from tape.skip_space()
        if c == "{":
            tape.unread(c)
            return (yield from json_calls(tape, sink, tools.names))
        if c.isidentifier():
            return (yield from pythonic_calls(tape, sink, tools.names, c))
        tape.unread(c)
        return False


def mistral(tape: Tape, sink: Sink, tools: Tools) -> Reading[None]:
    """[TOOL_CALLS][{"name": …, "arguments": {…}}], or [TOOL_CALLS]name[CALL_ID]id[ARGS]{…}"""
    opening, named, argued = marks("[TOOL_CALLS]"), marks("[CALL_ID]", "[ARGS]", "{"), marks("{")
    while mark := (yield from tape.until(sink.text, opening)):
        tape.hold(mark)
        c = yield from tape.skip_space()
        if c == "[":
            called = yield from json_calls(tape, sink, None)
        elif c == "{":
            called = yield from json_call(tape, sink, None)
        else:
            tape.unread(c)
            name: list[str] = []
            id: list[str] = []
            mark = yield from tape.until(name.append, named)
            if mark == "[CALL_ID]":
                mark = yield from tape.until(id.append, marks("[ARGS]"))
            if mark == "[ARGS]":
                mark = yield from tape.until(discard, argued)
            called = mark == "{" and well_named("".join(name).strip())
            if called:
                tape.release()
                sink.begin_call("".join(name).strip(), "".join(id).strip())
                yield from copy_value(tape, sink.arguments, mark)
        if not called:
            sink.text(tape.release())


class Wrapped(NamedTuple):
    """A call between marks: begin, its name, separator, its arguments, end.

    sections: marks around all calls of an answer. word: stands in place of the name, which then
    is a line after the separator.
    """

    sections: tuple[str, str]
    begin: str
    separator: str
    end: str
    word: str = ""

    def __call__(self, tape: Tape, sink: Sink, tools: Tools) -> Reading[None]:
        opening = marks(self.begin, *self.sections)
        while mark := (yield from tape.until(sink.text, opening)):
            if mark != self.begin:
                continue
            tape.hold(mark)
            name, id = yield from self._name(tape)
            c = yield from tape.skip_space()
            fenced = c == "`" and (yield from tape.literal("``json"))
            if fenced:
                c = yield from tape.skip_space()
            if not well_named(name) or c != "{":
                tape.unread(c)
                sink.text(tape.release())
                continue
            tape.release()
            sink.begin_call(name, id)
            yield from copy_value(tape, sink.arguments, c)
            if fenced:
                yield from closing(tape, "```")
            yield from closing(tape, self.end)

    def _name(self, tape: Tape) -> Reading[tuple[str, str]]:
        """`functions.name:0` is name and id at once; else the id is ours."""
        parts: list[str] = []
        if not (yield from tape.until(parts.append, marks(self.separator, self.end))):
            return "", ""
        name = "".join(parts).strip()
        if self.word and name == self.word:
            parts.clear()
            yield from tape.until(parts.append, marks("\n"))
            name = "".join(parts).strip()
        bare, colon, index = name.rpartition(":")
        if colon and index.isdigit():
            return bare.removeprefix("functions."), name
        return name, ""


class Pairs(NamedTuple):
    """A call whose arguments are marked one by one.

    name_open: stands before the name, if anything. name_ends: marks one of which ends the name.
    ends: marks after the last argument. quote: what stands around a value and is no part of it.
    """

    name_open: str
    name_ends: tuple[str, ...]
    key: tuple[str, str]
    value: tuple[str, str]
    ends: tuple[str, ...]
    quote: str = ""

    def __call__(self, tape: Tape, sink: Sink, tools: Tools) -> Reading[None]:
        opening, ends = marks("<tool_call>"), marks(*self.name_ends)
        while mark := (yield from tape.until(sink.text, opening)):
            tape.hold(mark)
            name: list[str] = []
            mark = ""
            if not self.name_open or (yield from closing(tape, self.name_open)):
                mark = yield from tape.until(name.append, ends)
            called = "".join(name).strip()
            if not mark or not well_named(called):
                sink.text(tape.release())
                continue
            tape.release()
            sink.begin_call(called)
            sink.arguments("{")
            yield from self._arguments(tape, sink, tools, called, mark)

    def _arguments(
        self, tape: Tape, sink: Sink, tools: Tools, name: str, mark: str
    ) -> Reading[None]:
        keys = marks(self.key[0], *self.ends)
        given = 0
        while mark not in self.ends:
            if mark == self.key[0]:
                key: list[str] = []
                if not (yield from tape.until(key.append, marks(self.key[1]))):
                    return
                if self.value[0] and not (yield from closing(tape, self.value[0])):
                    mark = yield from tape.until(discard, keys)
                    continue
                value: list[str] = []
                if not (yield from tape.until(value.append, marks(self.value[1]))):
                    return
                text = "".join(value).removeprefix(self.quote).removesuffix(self.quote)
                shown = "".join(key).strip()
                sink.arguments(", " if given else "")
                sink.arguments(json.dumps(shown, ensure_ascii=False) + ": ")
                sink.arguments(_as_json(text, tools.is_text(name, shown)))
                given += 1
            mark = yield from tape.until(discard, keys)
            if not mark:
                return
        sink.arguments("}")
        for end in self.ends[self.ends.index(mark) + 1 :]:
            yield from closing(tape, end)


def _as_json(text: str, is_text: bool) -> str:
    """A value as it stands where that is JSON, else as a string."""
    if not is_text:
        try:
            return json.dumps(json.loads(text), ensure_ascii=False, allow_nan=False)
        except (ValueError, RecursionError):
            pass
    return json.dumps(text, ensure_ascii=False)


def lines(tape: Tape, sink: Sink, tools: Tools) -> Reading[None]:
    """The name on a line, then the arguments: the whole answer."""
    while True:
        tape.hold()
        c = yield from tape.skip_space()
        tape.unread(c)
        name = ""
        while any(n.startswith(name) for n in tools.names):
            c = yield from tape.read()
            if not c or c in " \r\n{":
                break
            name += c
        if c and c in " \r\n":
            c = yield from tape.skip_space()
        tape.unread(c)
        if c != "{" or name not in tools.names:
            break
        tape.release()
        sink.begin_call(name)
        yield from copy_value(tape, sink.arguments, (yield from tape.read()))
        yield from closing(tape, "<|assistant|>")
    sink.text(tape.release())
    yield from tape.until(sink.text, marks())
