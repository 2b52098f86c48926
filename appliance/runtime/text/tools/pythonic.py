"""Tool calls written as Python: `[get_weather(city="Berlin", days=2), now()]`, turned into JSON.

A call is held until its bracket closes. Nothing is evaluated: names, keywords and literals only.
"""

from __future__ import annotations

import json

from appliance.runtime.text.sink import Sink
from appliance.runtime.text.tape import Put, Reading, Tape
from appliance.runtime.text.tools.calls import MAX_NAME, Names, well_named

MAX_DEPTH = 64
_WORDS = {
    "True": "true", "False": "false", "None": "null", "true": "true", "false": "false",
    "null": "null",
}  # fmt: skip
_CLOSES = {"[": "]", "{": "}", "(": ")"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_HEX = {"x": 2, "u": 4, "U": 8}


def pythonic_calls(tape: Tape, sink: Sink, names: Names, c: str) -> Reading[bool]:
    """After `[` and the character c, held. False: what is held now is text."""
    while True:
        tape.unread(c)
        name = yield from _word(tape)
        if not well_named(name) or (names is not None and name not in names):
            return False
        if (yield from tape.read()) != "(":
            return False
        parts: list[str] = []
        if not (yield from _keywords(tape, parts.append)):
            return False
        arguments = "".join(parts)
        if not _is_json(arguments):
            return False
        tape.release()
        sink.begin_call(name)
        sink.arguments(arguments)
        c = yield from tape.skip_space()
        if c != ",":
            if c != "]":
                tape.unread(c)
            return True
        tape.hold(c)
        c = yield from tape.skip_space()
        if c == "]":
            tape.release()
            return True


def _word(tape: Tape) -> Reading[str]:
    out: list[str] = []
    while len(out) <= MAX_NAME:
        c = yield from tape.read()
        if not c or not (c.isalnum() or c in "_.-+"):
            tape.unread(c)
            break
        out.append(c)
    return "".join(out)


def _keywords(tape: Tape, put: Put) -> Reading[bool]:
    """After the call's `(`, to its `)`."""
    put("{")
    first = True
    while True:
        c = yield from tape.skip_space()
        if c == ")":
            put("}")
            return True
        tape.unread(c)
        key = yield from _word(tape)
        if not key.isidentifier() or (yield from tape.skip_space()) != "=":
            return False
        put(("" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
        first = False
        if not (yield from _value(tape, put)):
            return False
        c = yield from tape.skip_space()
        if c == ")":
            tape.unread(c)
        elif c != ",":
            return False


def _value(tape: Tape, put: Put) -> Reading[bool]:
    """One literal. Commas wait for what follows them, since Python allows one before a bracket."""
    closers: list[str] = []
    comma = False
    while True:
        c = yield from tape.skip_space()
        if not c or tape.too_long:
            return False
        if closers and c in ")]}":
            if c != closers.pop():
                return False
            put("]" if c == ")" else c)
            comma = False
        elif closers and c == ",":
            if comma:
                return False
            comma = True
            continue
        elif closers and c == ":":
            put(": ")
            continue
        else:
            if comma:
                put(", ")
                comma = False
            if c in _CLOSES:
                if len(closers) >= MAX_DEPTH:
                    return False
                closers.append(_CLOSES[c])
                put("[" if c == "(" else c)
                continue
            if not (yield from _scalar(tape, put, c)):
                return False
        if not closers:
            return True


def _scalar(tape: Tape, put: Put, c: str) -> Reading[bool]:
    if c in "\"'":
        return (yield from _string(tape, put, c))
    tape.unread(c)
    word = yield from _word(tape)
    if word not in _WORDS and not _is_number(word):
        return False
    put(_WORDS.get(word, word))
    return True


def _is_json(text: str) -> bool:
    """Python has dictionaries whose keys are no strings, and more that JSON has not."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _is_number(word: str) -> bool:
    try:
        return isinstance(json.loads(word), int | float) and word.isascii()
    except (ValueError, RecursionError):
        return False


def _string(tape: Tape, put: Put, quote: str) -> Reading[bool]:
    put('"')
    while True:
        c = yield from tape.read()
        if not c or tape.too_long:
            return False
        if c == quote:
            put('"')
            return True
        if c == "\\":
            c = yield from tape.read()
            if c in _HEX:
                c = yield from _by_number(tape, _HEX[c])
                if not c:
                    return False
            elif c in _ESCAPES:
                c = _ESCAPES[c]
            elif c not in "\\\"'":
                c = "\\" + c
        put(json.dumps(c, ensure_ascii=False)[1:-1])


def _by_number(tape: Tape, digits: int) -> Reading[str]:
    """A lone half of a surrogate pair is no character, so it becomes U+FFFD."""
    number = 0
    for _ in range(digits):
        c = yield from tape.read()
        if c not in "0123456789abcdefABCDEF" or not c:
            return ""
        number = number * 16 + int(c, 16)
    if number > 0x10FFFF or 0xD800 <= number < 0xE000:
        return "\ufffd"
    return chr(number)
