"""The head of the dashboard in words: what runs, the key figures, the alerts. No textual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import get_args

from rich.cells import cell_len

from appliance import address
from appliance.status import PhaseName, TopSnapshot, about
from appliance.tui.styles import LEVELS, above
from appliance.tui.text import (
    UNICODE,
    Glyphs,
    Line,
    Span,
    compact,
    duration,
    fit_line,
    inert,
    milliseconds,
    per_joule,
    percent,
    whole,
)

PHASES: tuple[str, ...] = get_args(PhaseName)
QUEUE_LONG_S = (1.0, 5.0)
KV_HIGH = (0.7, 0.9)


def state_words(top: TopSnapshot, glyphs: Glyphs = UNICODE) -> str:
    """``STARTING 3/6 load 41%``, ``READY``."""
    words = top.state.upper()
    if top.state not in ("starting", "degraded") or not top.phase:
        return words
    if top.phase in PHASES:
        words += f" {PHASES.index(top.phase) + 1}/{len(PHASES)}"
    words += f" {inert(top.phase, glyphs)}"
    words += "" if top.progress is None else f" {percent(top.progress)}"
    return words if top.remaining_s is None else f"{words}, {about(top.remaining_s)} left"


def _title_parts(top: TopSnapshot, glyphs: Glyphs, *, short: bool) -> list[Span]:
    """What stands behind the state, the most important first."""
    parts: list[Span] = []
    if top.model.get("id"):
        name = inert(top.model["id"], glyphs)
        parts.append(("head", name.rpartition("/")[2] if short else name))
    if top.restarts:
        parts.append(("warn", f"{top.restarts} restart{'s' if top.restarts > 1 else ''}"))
    if top.profile.get("name"):
        changed = "*" if top.profile.get("overrides") else ""
        word = "" if short else "profile "
        parts.append(("dim", f"{word}{inert(top.profile['name'], glyphs)}{changed}"))
    if top.at or top.uptime_s:
        parts.append(("dim", f"up {duration(top.uptime_s)}"))
    return parts


def title(
    top: TopSnapshot, width: int, state: str, badge: str = "", glyphs: Glyphs = UNICODE
) -> Line:
    """One line: state, what runs, and the URL at the right edge; shorter words where it is tight.

    The state is always there; of the rest, what does not fit is left out.
    """
    path = address.socket_of(top.url)
    url = inert(f"unix:{path}" if path else top.url, glyphs)
    first: Span = (badge, f" {state} " if badge else f" {state}")
    for short in (False, True):
        left = _joined(first, _title_parts(top, glyphs, short=short))
        room = width - sum(cell_len(text) for _, text in left) - cell_len(url) - 1
        if room >= 2:
            return (*left, ("", " " * room), ("dim", url), ("", " "))
    left = (first,)
    used = cell_len(first[1])
    for style, text in (*_title_parts(top, glyphs, short=True), ("dim", url)):
        if text and used + 2 + cell_len(text) <= width:
            left += (("", "  "), (style, text))
            used += 2 + cell_len(text)
    return fit_line(left, width, glyphs)


def _joined(first: Span, parts: list[Span]) -> Line:
    line = [first]
    for part in parts:
        line += [("", "  "), part]
    return tuple(line)


@dataclass(frozen=True)
class KeyFigure:
    """short: the label where there is little room. more: what belongs to the value, or nothing.

    ratio: of a whole, where it is one. style: of the value; more_style: of what belongs to it.
    extra: stands below the value where there is room for it, and nothing else does. title: of its
    box, where that is not the label.
    """

    label: str
    short: str
    value: str
    more: str = ""
    ratio: float | None = None
    style: str = "value"
    more_style: str = "dim"
    extra: str = ""
    title: str = ""

    @property
    def line(self) -> str:
        return f"{self.value}  {self.more}" if self.more else self.value


def key_figures(top: TopSnapshot, glyphs: Glyphs = UNICODE) -> list[KeyFigure]:
    return [key_figure(index, top, glyphs) for index in range(len(_FIGURES))]


def key_figure(index: int, top: TopSnapshot, glyphs: Glyphs = UNICODE) -> KeyFigure:
    return _FIGURES[index](top, glyphs)


def _generated(top: TopSnapshot, glyphs: Glyphs) -> KeyFigure:
    speed = top.throughput
    came = f"in {compact(speed.get('prompt_tok_s'), glyphs)}"
    return KeyFigure("gen tok/s", "gen", whole(speed.get("gen_tok_s"), glyphs), came)


def _pool(top: TopSnapshot, glyphs: Glyphs) -> KeyFigure:
    ratio = top.kv.get("ratio")
    used, total = (compact(top.kv.get(f"{name}_tokens"), glyphs) for name in ("used", "total"))
    return KeyFigure(
        "KV cache",
        "KV",
        percent(ratio, glyphs),
        f"{used}/{total} tok",
        ratio=ratio,
        style=above(ratio, *KV_HIGH),
    )


def _hits(top: TopSnapshot, glyphs: Glyphs) -> KeyFigure:
    hit, cached = top.prefix_cache.get("hit_ratio_60s"), top.throughput.get("cached_prompt_tok_s")
    extra = "" if cached is None else f"{compact(cached, glyphs)} tok/s"
    return KeyFigure("hit 60s", "hit 60s", percent(hit, glyphs), ratio=hit, extra=extra)


def _queue(top: TopSnapshot, glyphs: Glyphs) -> KeyFigure:
    running, waiting = (whole(top.queue.get(name), glyphs) for name in ("running", "waiting"))
    most, oldest = top.queue.get("max_running"), top.queue.get("oldest_wait_s") or 0.0
    extra = "" if most is None else f"at most {whole(most, glyphs)}"
    style = above(oldest, *QUEUE_LONG_S)
    if top.queue.get("waiting") and oldest >= QUEUE_LONG_S[0]:
        extra = f"oldest {duration(oldest, glyphs)}"
    return KeyFigure("run/queue", "run", f"{running} / {waiting}", style=style, extra=extra)


def _first_token(top: TopSnapshot, glyphs: Glyphs) -> KeyFigure:
    return _spread("TTFT", top.latency_60s.get("ttft_s", {}), glyphs)


def _between(top: TopSnapshot, glyphs: Glyphs) -> KeyFigure:
    return _spread("ITL", top.latency_60s.get("itl_s", {}), glyphs)


def _spread(name: str, spread: dict[str, float | None], glyphs: Glyphs) -> KeyFigure:
    p50, p99 = (milliseconds(spread.get(q), glyphs) for q in ("p50", "p99"))
    return KeyFigure(f"{name} p50/p99", name, f"{p50} / {p99} ms", title=name, extra="p50 / p99")


def _errors(top: TopSnapshot, glyphs: Glyphs) -> KeyFigure:
    failed, refused = top.errors_60s.get("5xx"), top.errors_60s.get("4xx")
    return KeyFigure(
        "errors/min",
        "err",
        whole(failed, glyphs),
        f"4xx {whole(refused, glyphs)}",
        style="bad" if failed else "value",
        more_style="warn" if refused else "dim",
    )


def _power(top: TopSnapshot, glyphs: Glyphs) -> KeyFigure:
    watts = top.power.get("watts")
    if watts is None:
        return KeyFigure("power", "power", glyphs.dash)
    rate = f"{per_joule(top.power.get('tokens_per_joule'), glyphs)} tok/J"
    return KeyFigure("power", "power", f"{whole(watts, glyphs)} W", rate)


_FIGURES: tuple[Callable[[TopSnapshot, Glyphs], KeyFigure], ...] = (
    _generated, _queue, _pool, _hits, _first_token, _between, _errors, _power,
)  # fmt: skip


def alert_lines(top: TopSnapshot, glyphs: Glyphs = UNICODE) -> list[Line]:
    """Each with age and fix, newest first; what a start or a failure says of itself comes before
    them."""
    lines: list[Line] = []
    if top.detail and top.state in ("starting", "degraded", "failed"):
        level = "error" if top.state == "failed" else "info"
        lines.append(alert_line(level, inert(top.detail, glyphs)))
    for alert in top.alerts:
        text = inert(alert.get("message", ""), glyphs)
        age = _age(str(alert.get("since") or ""), top.at)
        told = "" if age is None else f" ({duration(age, glyphs)})"
        fix = f": {inert(alert['fix'], glyphs)}" if alert.get("fix") else ""
        lines.append(alert_line(str(alert.get("level", "warn")), text, f"{told}{fix}"))
    return lines


def alert_line(level: str, text: str, rest: str = "") -> Line:
    style = LEVELS.get(level, "warn")
    return ((style, f"! {text}"), ("" if style == "alarm" else "dim", rest))


def _age(since: str, at: str) -> float | None:
    """Seconds between two times of ISO 8601, or None when one is missing."""
    try:
        return max(
            0.0, (datetime.fromisoformat(at) - datetime.fromisoformat(since)).total_seconds()
        )
    except (ValueError, TypeError):
        return None
