"""Tool calls written as JSON: an object with a name and arguments, or a list of them.

Arguments are put as they come. Until a name is known everything is held, and what turns out to be
no call stays text. Depth is a number here, so nesting costs nothing and cannot overflow.
"""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Any

from appliance.runtime.text.sink import Sink
from appliance.runtime.text.tape import Put, Reading, Tape

NAME_KEYS = frozenset({"name", "function"})
ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
OTHER_KEYS = frozenset({"id", "type"})
MAX_NAME = 256

Names = Set[str] | None
"""Names that make an object a call; None: any name does."""


class Tools:
    """The tools of a request (OpenAI's shape): their names, and the type of each parameter."""

    def __init__(self, tools: list[dict[str, Any]] | None) -> None:
        self._parameters: dict[str, Any] = {}
        for tool in tools or ():
            function = tool.get("function") if isinstance(tool, dict) else None
            if isinstance(function, dict) and isinstance(function.get("name"), str):
                self._parameters[function["name"]] = function.get("parameters")
        self.names = frozenset(self._parameters)

    def is_text(self, name: str, parameter: str) -> bool:
        """Whether the parameter's schema takes a string and nothing else."""
        schema = self._parameters.get(name)
        for key in ("properties", parameter):
            schema = schema.get(key) if isinstance(schema, dict) else None
        if not isinstance(schema, dict):
            return False
        choices = schema.get("enum")
        if isinstance(choices, list) and choices and "type" not in schema:
            return all(isinstance(c, str) for c in choices)
        return schema.get("type") == "string"


def discard(text: str) -> None:
    """Where what nobody asked for goes."""


def well_named(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME and all(c.isalnum() or c in "_-.:/" for c in name)


def json_calls(tape: Tape, sink: Sink, names: Names) -> Reading[bool]:
    """After the `[` of a list of objects, held. False: what is held now is text."""
    c = yield from tape.skip_space()
    while True:
        if c != "{":
            tape.unread(c)
            return False
        if not (yield from json_call(tape, sink, names)):
            return False
        c = yield from tape.skip_space()
        if c != ",":
            if c != "]":
                tape.unread(c)
            return True
        tape.hold(c)
        c = yield from tape.skip_space()


def json_call(tape: Tape, sink: Sink, names: Names) -> Reading[bool]:
    """After the `{` of a call, held. True: it was one, and nothing is held any more."""
    name, early, begun = "", "", False
    c = yield from tape.skip_space()
    while True:
        if c != '"':
            tape.unread(c)
            return begun
        key = yield from _short_string(tape)
        c = yield from tape.skip_space()
        if not key or c != ":":
            tape.unread(c)
            return begun
        c = yield from tape.skip_space()
        if begun:
            yield from copy_value(tape, discard, c)
        elif key in NAME_KEYS and c == '"' and not name:
            name = yield from _short_string(tape)
            if not well_named(name) or (names is not None and name not in names):
                return False
        elif key in ARGUMENT_KEYS and name and c == "{":
            tape.release()
            sink.begin_call(name)
            begun = True
            yield from copy_value(tape, sink.arguments, c)
        elif key in ARGUMENT_KEYS and c and not early:
            parts: list[str] = []
            if not (yield from copy_value(tape, parts.append, c)):
                return False
            early = _as_object("".join(parts))
            if not early:
                return False
        elif key not in OTHER_KEYS or not (yield from copy_value(tape, discard, c)):
            return False
        c = yield from tape.skip_space()
        if c == ",":
            c = yield from tape.skip_space()
        elif begun or (c == "}" and name):
            if not begun:
                tape.release()
                sink.begin_call(name)
                sink.arguments(early or "{}")
            if c != "}":
                tape.unread(c)
            return True
        else:
            tape.unread(c)
            return False


def copy_value(tape: Tape, put: Put, c: str) -> Reading[bool]:
    """Puts one JSON value whose first character was read. False: it has no end, or is none, or
    more is held than may be."""
    if c == '"':
        put(c)
        return (yield from _copy_string(tape, put))
    if c and c in "{[":
        return (yield from _copy_nested(tape, put, c))
    length = 0
    while c and (c.isalnum() or c in "+-."):
        put(c)
        length += 1
        c = yield from tape.read()
    tape.unread(c)
    return 0 < length <= MAX_NAME


def _copy_nested(tape: Tape, put: Put, c: str) -> Reading[bool]:
    depth = 1
    put(c)
    while depth:
        c = yield from tape.read()
        if not c or tape.too_long:
            put(c)
            return False
        put(c)
        if c == '"':
            if not (yield from _copy_string(tape, put)):
                return False
        elif c in "{[":
            depth += 1
        elif c in "}]":
            depth -= 1
    return True


def _copy_string(tape: Tape, put: Put) -> Reading[bool]:
    escaped = False
    while True:
        c = yield from tape.read()
        put(c)
        if not c or tape.too_long:
            return False
        if escaped:
            escaped = False
        elif c == "\\":
            escaped = True
        elif c == '"':
            return True


def _short_string(tape: Tape) -> Reading[str]:
    """After the quote: the text of a key or a name; "" when it is none."""
    raw: list[str] = ['"']
    while len(raw) < MAX_NAME:
        c = yield from tape.read()
        if not c:
            return ""
        raw.append(c)
        if c == "\\":
            raw.append((yield from tape.read()))
        elif c == '"':
            try:
                text = json.loads("".join(raw))
            except ValueError:
                return ""
            return text if isinstance(text, str) else ""
    return ""


def _as_object(text: str) -> str:
    """Arguments as the text of an object: also when given as a string of JSON, or as null."""
    if text == "null":
        return "{}"
    if text.startswith('"'):
        try:
            inner = json.loads(text, strict=False)
            text = inner.strip(" \t\r\n") or "{}"
            return text if isinstance(json.loads(text), dict) else ""
        except (ValueError, RecursionError):
            return ""
    return text if text.startswith("{") else ""


def closing(tape: Tape, mark: str) -> Reading[bool]:
    """Passes white space and `mark`, where they come next."""
    c = yield from tape.skip_space()
    tape.unread(c)
    return (yield from tape.literal(mark))
