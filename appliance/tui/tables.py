"""Rows of the tables: requests with their columns, GPUs, log lines. No textual."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.cells import cell_len

from appliance import address
from appliance.status import RequestRow, TopSnapshot
from appliance.tui.graphs import gauge
from appliance.tui.styles import LEVELS, above
from appliance.tui.text import (
    UNICODE,
    Glyphs,
    Line,
    brief,
    compact,
    duration,
    fit,
    inert,
    memory,
    percent,
    said,
    unmarked,
    whole,
)

HOT_C = (80.0, 88.0)
_GAUGE = 8
_GAUGES_FROM = 52
"""Width from which the GPU table has bars."""
_SEVERE = frozenset({"heat", "hw-slowdown", "power-brake"})


@dataclass(frozen=True)
class Column:
    """One column of the requests table. key: what it sorts by, None last."""

    name: str
    width: int
    cell: Callable[[RequestRow, Glyphs], str]
    key: Callable[[RequestRow], float | str | None]
    right: bool = True
    style: Callable[[RequestRow], str] = lambda row: ""


def _phase(row: RequestRow, glyphs: Glyphs) -> str:
    if row.phase == "prefill" and row.prefilled_tokens is not None:
        share = row.prefilled_tokens / max(1, row.prompt_tokens)
        return f"prefill {percent(min(1.0, share))}"
    return inert(row.finish, glyphs) or row.phase


def _short_phase(row: RequestRow, glyphs: Glyphs) -> str:
    return _phase(row, glyphs).replace("prefill ", "pre ")


def _phase_style(row: RequestRow) -> str:
    if row.phase == "done":
        return "dim" if row.finish in ("stop", "length", "tool_calls") else "warn"
    return {"queued": "warn", "prefill": "info", "stopping": "warn"}.get(row.phase, "")


def _faint(row: RequestRow) -> str:
    return "dim" if row.phase == "done" else ""


def _found(row: RequestRow) -> str:
    return _faint(row) if row.cached_tokens else "dim"


COLUMNS: dict[str, Column] = {
    c.name: c
    for c in (
        Column("id", 12, lambda r, g: inert(r.id, g), lambda r: r.id, False, _faint),
        Column("phase", 8, _short_phase, lambda r: r.phase, False, _phase_style),
        Column(
            "prompt",
            6,
            lambda r, g: compact(r.prompt_tokens, g),
            lambda r: r.prompt_tokens,
            style=_faint,
        ),
        Column(
            "cached",
            6,
            lambda r, g: compact(r.cached_tokens, g),
            lambda r: r.cached_tokens,
            style=_found,
        ),
        Column(
            "out",
            9,
            lambda r, g: f"{r.output_tokens}/{compact(r.max_tokens, g)}",
            lambda r: r.output_tokens,
            style=_faint,
        ),
        Column("TTFT", 6, lambda r, g: brief(r.ttft_s, g), lambda r: r.ttft_s, style=_faint),
        Column("tok/s", 6, lambda r, g: whole(r.tok_s, g), lambda r: r.tok_s, style=_faint),
        Column(
            "wait",
            6,
            lambda r, g: brief(r.queue_s, g),
            lambda r: r.queue_s,
            style=lambda r: above(r.queue_s, 1.0, 5.0, _faint(r)),
        ),
        Column("age", 6, lambda r, g: duration(r.age_s, g), lambda r: r.age_s, style=_faint),
        Column("client", 12, lambda r, g: inert(r.client, g), lambda r: r.client, False, _faint),
    )
}
_TINY = ("id", "phase", "out")
_NARROW = ("id", "phase", "out", "tok/s", "age")
_MEDIUM = ("id", "phase", "prompt", "cached", "out", "TTFT", "tok/s", "age")
_GAP = 2
_LONGEST_ID, _LONGEST_CLIENT = 26, 32
_WIDE_PHASE = 12
"""``prefill 100%``, where there is room for it."""


def columns_for(width: int) -> tuple[Column, ...]:
    """The columns of the requests table that fit ``width`` cells.

    What is left goes to the phase first, then to the id, then to the client.
    """
    names = (
        _TINY
        if width < 48
        else _NARROW
        if width < 76
        else _MEDIUM
        if width < 97
        else tuple(COLUMNS)
    )
    columns = [COLUMNS[name] for name in names]
    room = width - sum(c.width + _GAP for c in columns[1:]) - _GAP
    if room >= COLUMNS["id"].width + _WIDE_PHASE - COLUMNS["phase"].width:
        room -= _WIDE_PHASE - COLUMNS["phase"].width
        columns[1] = replace(columns[1], width=_WIDE_PHASE, cell=_phase)
    columns[0] = replace(columns[0], width=min(_LONGEST_ID, max(4, room)))
    if columns[-1].name == "client" and room > _LONGEST_ID:
        wide = columns[-1].width + room - _LONGEST_ID
        columns[-1] = replace(columns[-1], width=min(_LONGEST_CLIENT, wide))
    return tuple(columns)


def chosen_requests(
    rows: Sequence[RequestRow], words: str, column: Column, descending: bool
) -> list[RequestRow]:
    """Rows that hold the words (``!words``: that do not), sorted; a missing value comes last."""
    wanted = words.removeprefix("!").lower()
    if wanted:
        rows = [
            r
            for r in rows
            if (wanted in f"{r.id} {r.phase} {r.finish} {r.client}".lower())
            != words.startswith("!")
        ]
    known = [(key, r) for r in rows if (key := column.key(r)) is not None]
    known.sort(key=lambda pair: pair[1].id)
    known.sort(key=lambda pair: pair[0], reverse=descending)
    return [r for _, r in known] + [r for r in rows if column.key(r) is None]


def no_requests(top: TopSnapshot | None, words: str, glyphs: Glyphs) -> str:
    """What stands where there is no row, and what to do."""
    if top is None:
        return "waiting for the server's first answer"
    if words:
        return f"no request is left by '{inert(words, glyphs)}'; Esc clears the filter"
    if top.state == "starting":
        return "no requests yet: those that come now wait until the model is loaded"
    if top.state in ("failed", "stopped"):
        return "no requests: nothing is served"
    if top.finished or any(top.finished_60s.values()):
        return "no request is live; 2 shows those that have ended"
    url = inert(address.shown(top.url), glyphs) if top.url else "URL/v1"
    return f"no requests yet: point any OpenAI client at {url}"


def gpu_lines(top: TopSnapshot, width: int = 100, glyphs: Glyphs = UNICODE) -> list[Line]:
    """The GPU table, or the CPU where there is no GPU; the first line is its head."""
    bars = width >= _GAUGES_FROM
    if not top.gpus:
        return _cpu_lines(top.cpu, bars, glyphs)
    gap = " " * (_GAUGE + 1) if bars else ""
    head = f"GPU  util  {gap}  mem GiB        W  {glyphs.degree:>3}   MHz  slowed by"
    lines = [said(head, "dim")]
    for gpu in top.gpus:
        util = gpu.get("util")
        lines.append(
            (
                ("", f"{inert(gpu.get('index', '?'), glyphs):<3} "),
                ("value", fit(percent(util, glyphs), 5, glyphs, right=True)),
                ("graph", f" {gauge(util, _GAUGE, glyphs)}" if bars else ""),
                ("", fit(memory(gpu, glyphs), 11, glyphs, right=True)),
                ("", fit(_watts(gpu, glyphs), 9, glyphs, right=True)),
                (above(gpu.get("temp_c"), *HOT_C, ""), _cell(gpu.get("temp_c"), 5, glyphs)),
                ("", _cell(gpu.get("sm_mhz"), 6, glyphs)),
                *slowed(gpu, glyphs),
            )
        )
    return lines


def _watts(gpu: dict[str, Any], glyphs: Glyphs) -> str:
    limit = gpu.get("power_limit_w")
    drawn = unmarked(gpu.get("power_w"), glyphs)
    return drawn if limit is None else f"{drawn}/{limit:.0f}"


def slowed(gpu: dict[str, Any], glyphs: Glyphs) -> Line:
    """Why a GPU is slow, and its memory errors; nothing where all is well."""
    reasons = [inert(reason, glyphs) for reason in gpu.get("throttle") or ()]
    line: Line = ()
    if reasons:
        style = "bad" if _SEVERE & set(reasons) else "warn"
        line = (("", "  "), (style, ",".join(reasons)))
    if gpu.get("ecc_uncorrected"):
        line += (("", "  "), ("bad", f"{gpu['ecc_uncorrected']} ECC"))
    return line


def _cpu_lines(cpu: dict[str, int | float | None], bars: bool, glyphs: Glyphs) -> list[Line]:
    used, total = cpu.get("mem_used_bytes"), cpu.get("mem_total_bytes")
    share = None if used is None or not total else used / total
    load = cpu.get("load1")
    shown = glyphs.dash if load is None else f"{load:.2f}"
    rss = cpu.get("run_bytes")
    of_run = glyphs.dash if rss is None else f"{rss / 2**30:.1f} GiB"
    use, mem = percent(cpu.get("util"), glyphs), f"{memory(cpu, glyphs)} GiB"
    return [
        said("CPU (no GPU)", "dim"),
        _gauged("use", use, cpu.get("util"), bars, glyphs),
        _gauged("mem", mem, share, bars, glyphs),
        _gauged("run", of_run, None, bars, glyphs),
        (("dim", "load  "), ("", shown)),
    ]


def _gauged(name: str, value: str, ratio: float | None, bars: bool, glyphs: Glyphs) -> Line:
    bar = gauge(ratio, 2 * _GAUGE, glyphs) if bars and ratio is not None else ""
    return (("dim", f"{name:<6}"), ("value", f"{value:<15} "), ("graph", bar))


def _cell(value: float | None, width: int, glyphs: Glyphs) -> str:
    return fit(unmarked(value, glyphs), width, glyphs, right=True)


_LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\dT)(\d\d:\d\d:\d\d)(\S*) +([A-Z]+) +(\S+) ?(.*)", re.DOTALL)


def log_level(line: str) -> Literal["", "warning", "error"]:
    """How loud a log line is, by the level in its line format."""
    head = line[:60]
    if " ERROR" in head or " CRITICAL" in head:
        return "error"
    return "warning" if " WARN" in head else ""


def log_line(line: str, glyphs: Glyphs = UNICODE, *, short: bool = False) -> Line:
    """A line of the log; its time and its process stand back. short: of the time, the clock's."""
    style = LEVELS[log_level(line)]
    clean = inert(line, glyphs)
    parts = _LOG_LINE.fullmatch(clean)
    if parts is None:
        return said(clean, style)
    day, clock, rest, level, process, text = parts.groups()
    time = clock if short else day + clock + rest
    return (
        ("dim", f"{time} "),
        (style, f"{level:<7} "),
        ("dim", f"{process} "),
        (style, text),
    )


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[tuple[str, str]]],
    glyphs: Glyphs,
    left: frozenset[int] = frozenset(),
    gap: int = 2,
) -> list[Line]:
    """Cells (style, text) in columns as wide as they need; numbers at the right, `left` not."""
    if not rows:
        return []
    widths = [
        max(cell_len(text) for text in (name, *(row[at][1] for row in rows)))
        for at, name in enumerate(head)
    ]

    def line(cells: Sequence[tuple[str, str]]) -> Line:
        return tuple(
            (style, fit(text, widths[at], glyphs, right=at not in left) + " " * gap)
            for at, (style, text) in enumerate(cells)
        )

    return [line([("dim", name) for name in head]), *(line(row) for row in rows)]
