"""A TopSnapshot in words and columns: what the dashboard and the plain text both show. No textual.

A value that is missing prints a dash. Whatever came from outside goes through ``inert`` first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size

from appliance.status import RequestRow, TopSnapshot

PHASES = ("spawn", "import", "load", "plan", "capture", "warmup")


@dataclass(frozen=True)
class Glyphs:
    """Characters that a poor terminal lacks. levels: of a bar, from empty to full."""

    dash: str
    levels: str
    falling: str
    rising: str
    more: str

    @property
    def ascii(self) -> bool:
        return self.dash == "-"


UNICODE = Glyphs("–", " ▁▂▃▄▅▆▇█", "▼", "▲", "…")
ASCII = Glyphs("-", " .:-=+*#", "v", "^", "~")


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


def whole(value: float | None, glyphs: Glyphs = UNICODE) -> str:
    return glyphs.dash if value is None else f"{value:,.0f}"


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
    return f"{ms:.1f}" if ms < 10 else f"{ms:,.0f}"


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


def state_words(top: TopSnapshot, glyphs: Glyphs = UNICODE) -> str:
    """``STARTING 3/6 load 41%``, ``READY``."""
    words = top.state.upper()
    if top.state not in ("starting", "degraded") or not top.phase:
        return words
    if top.phase in PHASES:
        words += f" {PHASES.index(top.phase) + 1}/{len(PHASES)}"
    words += f" {inert(top.phase, glyphs)}"
    return words if top.progress is None else f"{words} {percent(top.progress)}"


def _title_parts(top: TopSnapshot, glyphs: Glyphs, *, short: bool) -> list[str]:
    """What stands behind the state, the most important first."""
    parts = []
    if top.model.get("id"):
        name = inert(top.model["id"], glyphs)
        parts.append(name.rpartition("/")[2] if short else name)
    if top.restarts:
        parts.append(f"{top.restarts} restart{'s' if top.restarts > 1 else ''}")
    if top.profile.get("name"):
        changed = "*" if top.profile.get("overrides") else ""
        word = "" if short else "profile "
        parts.append(f"{word}{inert(top.profile['name'], glyphs)}{changed}")
    parts.append(f"up {duration(top.uptime_s)}")
    return parts


def title(top: TopSnapshot, width: int, state: str, glyphs: Glyphs = UNICODE) -> str:
    """One line: state, what runs, and the URL at the right edge; shorter words where it is tight.

    The state is always there; of the rest, what does not fit is left out.
    """
    url = inert(top.url, glyphs)
    for short in (False, True):
        left = "  ".join([f" {state}", *_title_parts(top, glyphs, short=short)])
        room = width - cell_len(left) - 1
        if room >= cell_len(url) + 2:
            return left + fit(url, room, glyphs, right=True) + " "
    left = f" {state}"
    for part in (*_title_parts(top, glyphs, short=True), url):
        if cell_len(left) + 2 + cell_len(part) <= width:
            left += f"  {part}"
    return fit(left, width, glyphs)


def _pair(spread: dict[str, float | None], glyphs: Glyphs) -> str:
    p50, p99 = spread.get("p50"), spread.get("p99")
    return f"{milliseconds(p50, glyphs)} / {milliseconds(p99, glyphs)} ms"


@dataclass(frozen=True)
class KeyFigure:
    """short: the label where there is little room. more: what belongs to the value, or nothing."""

    label: str
    short: str
    value: str
    more: str = ""

    @property
    def line(self) -> str:
        return f"{self.value}  {self.more}" if self.more else self.value


def key_figures(top: TopSnapshot, glyphs: Glyphs = UNICODE) -> list[KeyFigure]:
    speed, queue, kv, late = top.throughput, top.queue, top.kv, top.latency_60s
    running, waiting = (whole(queue.get(name), glyphs) for name in ("running", "waiting"))
    used, total = (compact(kv.get(f"{name}_tokens"), glyphs) for name in ("used", "total"))
    return [
        KeyFigure(
            "gen tok/s",
            "gen",
            whole(speed.get("gen_tok_s"), glyphs),
            f"in {compact(speed.get('prompt_tok_s'), glyphs)}",
        ),
        KeyFigure("run/queue", "run", f"{running} / {waiting}"),
        KeyFigure("KV cache", "KV", percent(kv.get("ratio"), glyphs), f"{used}/{total} tok"),
        KeyFigure("hit 60s", "hit 60s", percent(top.prefix_cache.get("hit_ratio_60s"), glyphs)),
        KeyFigure("TTFT p50/p99", "TTFT", _pair(late.get("ttft_s", {}), glyphs)),
        KeyFigure("ITL p50/p99", "ITL", _pair(late.get("itl_s", {}), glyphs)),
        KeyFigure(
            "errors/min",
            "err",
            whole(top.errors_60s.get("5xx"), glyphs),
            f"4xx {whole(top.errors_60s.get('4xx'), glyphs)}",
        ),
        _power(top, glyphs),
    ]


def _power(top: TopSnapshot, glyphs: Glyphs) -> KeyFigure:
    watts = top.power.get("watts")
    if watts is None:
        return KeyFigure("power", "power", glyphs.dash)
    rate = f"{per_joule(top.power.get('tokens_per_joule'), glyphs)} tok/J"
    return KeyFigure("power", "power", f"{whole(watts, glyphs)} W", rate)


def alert_lines(top: TopSnapshot, glyphs: Glyphs = UNICODE) -> list[tuple[str, str]]:
    """(level, line with age and fix) newest first; what a start or a failure says of itself comes
    before them."""
    lines = []
    if top.detail and top.state in ("starting", "degraded", "failed"):
        level = "error" if top.state == "failed" else "info"
        lines.append((level, inert(top.detail, glyphs)))
    for alert in top.alerts:
        text = inert(alert.get("message", ""), glyphs)
        age = _age(str(alert.get("since") or ""), top.at)
        text += "" if age is None else f" ({duration(age, glyphs)})"
        if alert.get("fix"):
            text += f": {inert(alert['fix'], glyphs)}"
        lines.append((str(alert.get("level", "warn")), text))
    return lines


def _age(since: str, at: str) -> float | None:
    """Seconds between two times of ISO 8601, or None when one is missing."""
    try:
        return max(
            0.0, (datetime.fromisoformat(at) - datetime.fromisoformat(since)).total_seconds()
        )
    except (ValueError, TypeError):
        return None


@dataclass(frozen=True)
class Column:
    """One column of the requests table. key: what it sorts by, None last."""

    name: str
    width: int
    cell: Callable[[RequestRow, Glyphs], str]
    key: Callable[[RequestRow], float | str | None]
    right: bool = True


COLUMNS: dict[str, Column] = {
    c.name: c
    for c in (
        Column("id", 12, lambda r, g: inert(r.id, g), lambda r: r.id, False),
        Column("phase", 8, lambda r, g: inert(r.finish, g) or r.phase, lambda r: r.phase, False),
        Column("prompt", 6, lambda r, g: compact(r.prompt_tokens, g), lambda r: r.prompt_tokens),
        Column("cached", 6, lambda r, g: compact(r.cached_tokens, g), lambda r: r.cached_tokens),
        Column(
            "out",
            9,
            lambda r, g: f"{r.output_tokens}/{compact(r.max_tokens, g)}",
            lambda r: r.output_tokens,
        ),
        Column("TTFT", 6, lambda r, g: brief(r.ttft_s, g), lambda r: r.ttft_s),
        Column("tok/s", 6, lambda r, g: whole(r.tok_s, g), lambda r: r.tok_s),
        Column("wait", 6, lambda r, g: brief(r.queue_s, g), lambda r: r.queue_s),
        Column("age", 6, lambda r, g: duration(r.age_s, g), lambda r: r.age_s),
        Column("client", 12, lambda r, g: inert(r.client, g), lambda r: r.client, False),
    )
}
_TINY = ("id", "phase", "out")
_NARROW = ("id", "phase", "out", "tok/s", "age")
_MEDIUM = ("id", "phase", "prompt", "cached", "out", "TTFT", "tok/s", "age")
_TABLE_GAP = 2
_LONGEST_ID = 40


def columns_for(width: int) -> tuple[Column, ...]:
    """The columns of the requests table that fit ``width`` cells; the id takes what is left."""
    names = (
        _TINY
        if width < 48
        else _NARROW
        if width < 76
        else _MEDIUM
        if width < 97
        else tuple(COLUMNS)
    )
    first, *rest = (COLUMNS[name] for name in names)
    room = width - sum(c.width + _TABLE_GAP for c in rest) - _TABLE_GAP
    slim = min(_LONGEST_ID, max(4, room))
    return (Column(first.name, slim, first.cell, first.key, False), *rest)


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


def gpu_lines(top: TopSnapshot, glyphs: Glyphs = UNICODE) -> list[str]:
    """The GPU table, or the CPU where there is no GPU; the first line is its head."""
    if not top.gpus:
        cpu = top.cpu
        return [
            "CPU (no GPU)",
            f"use   {percent(cpu.get('util'), glyphs)}",
            f"mem   {memory(cpu, glyphs)} GiB",
            f"load  {glyphs.dash if cpu.get('load1') is None else format(cpu['load1'], '.2f')}",
        ]
    lines = ["GPU  util%     mem GiB     W    C    MHz  throttle"]
    for gpu in top.gpus:
        util = gpu.get("util")
        reasons = ",".join(inert(reason, glyphs) for reason in gpu.get("throttle") or ())
        cells = (
            f"{inert(gpu.get('index', '?'), glyphs):<3}",
            fit(glyphs.dash if util is None else f"{util * 100:.0f}", 6, glyphs, right=True),
            fit(memory(gpu, glyphs), 12, glyphs, right=True),
            fit(whole(gpu.get("power_w"), glyphs), 6, glyphs, right=True),
            fit(whole(gpu.get("temp_c"), glyphs), 5, glyphs, right=True),
            fit(plain(gpu.get("sm_mhz"), glyphs), 7, glyphs, right=True),
        )
        lines.append("".join(cells) + (f"  {reasons}" if reasons else ""))
    return lines


def plain(value: float | None, glyphs: Glyphs) -> str:
    return glyphs.dash if value is None else f"{value:.0f}"


def memory(device: dict[str, Any], glyphs: Glyphs) -> str:
    used, total = device.get("mem_used_bytes"), device.get("mem_total_bytes")
    shown = glyphs.dash if used is None else f"{used / 2**30:.1f}"
    return f"{shown}/{glyphs.dash if total is None else format(total / 2**30, '.0f')}"


Metric = Literal[
    "gen_tok_s", "prompt_tok_s", "running", "waiting", "kv_ratio", "ttft_p50_s", "power_w"
]
METRICS: dict[Metric, str] = {
    "gen_tok_s": "gen tok/s",
    "prompt_tok_s": "prompt tok/s",
    "running": "running",
    "waiting": "queued",
    "kv_ratio": "KV used",
    "ttft_p50_s": "TTFT p50",
    "power_w": "power",
}


def metric_value(metric: str, value: float, glyphs: Glyphs = UNICODE) -> str:
    """A value of a metric with its unit."""
    if metric == "kv_ratio" or metric.endswith("util"):
        return percent(value, glyphs)
    if metric.endswith("_s") and "tok" not in metric:
        return f"{milliseconds(value, glyphs)} ms"
    return f"{whole(value, glyphs)} W" if metric.endswith("_w") else whole(value, glyphs)


SHORTEST_HISTORY_S = 120


def buckets(
    values: Sequence[float], width: int, shortest: int = SHORTEST_HISTORY_S
) -> tuple[list[float], int]:
    """At most ``width`` values, each the largest of its seconds, and how many seconds each has.

    One value a second comes in; `shortest` seconds at least are shown where there are so many.
    """
    if width < 1:
        return [], 1
    size = max(1, -(-min(len(values), shortest) // width))
    shown = list(values)[-width * size :]
    first = len(shown) % size
    groups = [shown[:first]] if first else []
    groups += [shown[at : at + size] for at in range(first, len(shown), size)]
    return [max(group) for group in groups][-width:], size


def bars(
    values: Sequence[float], width: int, height: int, glyphs: Glyphs = UNICODE, top: float = 0.0
) -> list[str]:
    """``height`` lines of bars, one column a value, the newest at the right edge.

    top: the value of a full bar; 0: the largest one.
    """
    shown = list(values)[-width:] if width > 0 else []
    largest = top or max(shown, default=0.0)
    steps = len(glyphs.levels) - 1
    lines = []
    for row in range(height - 1, -1, -1):
        line = ""
        for value in shown:
            level = value / largest * height * steps - row * steps if largest > 0 else 0.0
            filled = min(steps, max(0, round(level)))
            line += glyphs.levels[max(1, filled) if row == 0 and value > 0 else filled]
        lines.append(line.rjust(width))
    return lines


def log_level(line: str) -> Literal["", "warning", "error"]:
    """How loud a log line is, by the level in its line format."""
    head = line[:60]
    if " ERROR" in head or " CRITICAL" in head:
        return "error"
    return "warning" if " WARN" in head else ""
