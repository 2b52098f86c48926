"""Words and numbers that fit a terminal: what may stand there, how wide it is, how it is styled.

A value that is missing prints a dash. Whatever came from outside goes through ``inert`` first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size

from appliance import address
from appliance.status import TopSnapshot

Span = tuple[str, str]
"""(style, text); the style is a name of ``styles.STYLES``, or nothing."""
Line = tuple[Span, ...]


@dataclass(frozen=True)
class Glyphs:
    """Characters that a poor terminal lacks. levels: of a bar, from empty to full; eighths: of one
    that lies, likewise. shares: of a pool in use, kept, free."""

    dash: str
    levels: str
    eighths: str
    shares: str
    falling: str
    rising: str
    more: str
    dot: str
    degree: str

    @property
    def ascii(self) -> bool:
        return self.dash == "-"


UNICODE = Glyphs("–", " ▁▂▃▄▅▆▇█", " ▏▎▍▌▋▊▉█", "█▒·", "▼", "▲", "…", "·", "°C")
ASCII = Glyphs("-", " .:-=+*#", " #", "#=.", "v", "^", "~", ",", "C")


def said(text: str, style: str = "") -> Line:
    """A line of one style."""
    return ((style, text),)


def bare(line: Line) -> str:
    """Its text alone."""
    return "".join(text for _, text in line)


def inert(text: object, glyphs: Glyphs = UNICODE) -> str:
    """Text that cannot steer a terminal: control, direction and unassigned characters replaced."""
    mark = "?" if glyphs.ascii else "�"
    plain = str(text).replace("\t", " ")
    return "".join(
        c if c.isprintable() and (c.isascii() or not glyphs.ascii) else mark for c in plain
    )


def fit(text: str, width: int, glyphs: Glyphs = UNICODE, *, right: bool = False) -> str:
    """Exactly ``width`` cells: cut with a mark, or filled with spaces."""
    if width <= 0:
        return ""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + glyphs.more
    gap = " " * (width - length)
    return gap + text if right else text + gap


def fit_line(line: Line, width: int, glyphs: Glyphs = UNICODE) -> Line:
    """The line in exactly ``width`` cells."""
    spans: list[Span] = []
    left = width
    for at, (style, text) in enumerate(line):
        length = cell_len(text)
        if length > left or (length == left and any(t for _, t in line[at + 1 :])):
            more = length > left or bool(bare(line[at + 1 :]).strip())
            spans.append((style, fit(text + (" " if more else ""), left, glyphs)))
            left = 0
            break
        spans.append((style, text))
        left -= length
    if left > 0:
        spans.append(("", " " * left))
    return tuple(spans)


def wrapped(line: Line, width: int) -> list[Line]:
    """The words of a line on as many lines as they need; what follows the first is set in."""
    if cell_len(bare(line)) <= width or width < 12:
        return [line]
    lines: list[Line] = []
    spans: list[Span] = []
    used, indent = 0, ""
    for style, text in line:
        for word in _words(text):
            if used + cell_len(word.rstrip()) > width and used > len(indent):
                lines.append(tuple(spans))
                indent = "  "
                spans, used, word = [("", indent)], len(indent), word.lstrip()
            spans.append((style, word))
            used += cell_len(word)
    return [*lines, tuple(spans)]


def _words(text: str) -> Iterable[str]:
    """Words with the spaces behind them."""
    start = 0
    for at in range(1, len(text)):
        if text[at] != " " and text[at - 1] == " ":
            yield text[start:at]
            start = at
    if text[start:]:
        yield text[start:]


def ask_by_curl(top: TopSnapshot) -> str:
    """A shell command that asks the server one question, in any client's stead."""
    ask = {
        "model": str(top.model.get("id") or "default"),
        "messages": [{"role": "user", "content": "Hello"}],
    }
    body = json.dumps(ask).replace("'", "'\\''")
    url = address.curl(top.url.removesuffix("/v1"), "/v1/chat/completions")
    key = '-H "authorization: Bearer $APPLIANCE_API_KEY"'
    return f"curl {url} -H 'content-type: application/json' {key} -d '{body}'"


def whole(value: float | None, glyphs: Glyphs = UNICODE) -> str:
    return glyphs.dash if value is None else f"{value:,.0f}"


def unmarked(value: float | None, glyphs: Glyphs = UNICODE) -> str:
    """A whole number without marks between its thousands."""
    return glyphs.dash if value is None else f"{value:.0f}"


def compact(value: float | None, glyphs: Glyphs = UNICODE) -> str:
    """At most five characters: 950, 48.1k, 6.3M."""
    if value is None:
        return glyphs.dash
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scaled = value / (1e3 if unit == "k" else limit)
            return f"{scaled:.1f}{unit}" if scaled < 100 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"


def percent(ratio: float | None, glyphs: Glyphs = UNICODE) -> str:
    return glyphs.dash if ratio is None else f"{ratio * 100:.0f}%"


def milliseconds(seconds: float | None, glyphs: Glyphs = UNICODE) -> str:
    if seconds is None:
        return glyphs.dash
    ms = seconds * 1000
    return f"{ms:.1f}" if 0 < ms < 10 else f"{ms:,.0f}"


def timed(seconds: float | None, glyphs: Glyphs = UNICODE) -> str:
    """With the unit that suits it: 7.1 ms, 910 ms, 2.5 s, 3m20s."""
    if seconds is None:
        return glyphs.dash
    if seconds < 1:
        return f"{milliseconds(seconds)} ms"
    return f"{seconds:.3g} s" if seconds < 100 else duration(seconds, glyphs)


def per_joule(value: float | None, glyphs: Glyphs = UNICODE) -> str:
    return glyphs.dash if value is None else f"{value:.2f}"


def duration(seconds: float | None, glyphs: Glyphs = UNICODE) -> str:
    """Two units at most: 45s, 2h13m, 3d4h."""
    if seconds is None:
        return glyphs.dash
    s = int(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600}h"


def brief(seconds: float | None, glyphs: Glyphs = UNICODE) -> str:
    """A short time with its fraction: 0.13s."""
    if seconds is None:
        return glyphs.dash
    return f"{seconds:.2f}s" if seconds < 10 else duration(seconds, glyphs)


def memory(device: dict[str, Any], glyphs: Glyphs) -> str:
    used, total = device.get("mem_used_bytes"), device.get("mem_total_bytes")
    shown = glyphs.dash if used is None else f"{used / 2**30:.1f}"
    return f"{shown}/{glyphs.dash if total is None else format(total / 2**30, '.0f')}"


def plural(count: float, word: str) -> str:
    return f"{count:,.0f} {word}{'' if count == 1 else 's'}"
