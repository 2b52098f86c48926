"""Where values come from, who asks, and all that is known of one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.status import RequestRow, TopSnapshot
from appliance.tui import tables
from appliance.tui.styles import above
from appliance.tui.text import (
    Glyphs,
    Line,
    brief,
    compact,
    duration,
    fit,
    inert,
    percent,
    said,
    unmarked,
    whole,
)

_VALUE = 22
_LONGEST_CLIENT = 32


def config_panel(top: TopSnapshot, plan: dict[str, Any], width: int, glyphs: Glyphs) -> list[Line]:
    """Every value with where it came from; what is not the profile's or a default stands out."""
    answers = plan.get("answers") or []
    if not answers:
        if plan.get("refused"):
            return [said(inert(str(plan["refused"]), glyphs), "dim")]
        name = inert(top.profile.get("name", ""), glyphs)
        return [said(f"profile {name or glyphs.dash}: the run has left no plan to show", "dim")]
    field = min(30, max((len(str(a.get("field", ""))) for a in answers), default=0))
    head = f"{fit('field', field, glyphs)}  {fit('value', _VALUE)}  from, why"
    lines = [said(head, "dim")]
    for answer in answers:
        source = inert(answer.get("source", ""), glyphs)
        changed = source.startswith(("flag", "environment", "file"))
        why = ": ".join(filter(None, (source, inert(answer.get("reason") or "", glyphs))))
        value = fit(_written(answer.get("value"), glyphs), _VALUE, glyphs)
        name = fit(inert(answer.get("field", ""), glyphs), field, glyphs)
        style = "value" if changed else ""
        lines.append(((style, f"{name}  {value}  "), ("info" if changed else "dim", why)))
    return lines


def _written(value: Any, glyphs: Glyphs) -> str:
    """As `config show` writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(inert(one, glyphs) for one in value) or "(none)"
    return "(none)" if value == "" else inert(value, glyphs)


def client_panel(top: TopSnapshot, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """Who has live requests: a row for each API key, or program where there are no keys."""
    names = ("client", "live", "queued", "prompt", "out", "tok/s", "oldest")
    rows = [
        [
            ("", fit(inert(row.client, glyphs) or glyphs.dash, _LONGEST_CLIENT, glyphs).rstrip()),
            ("value", unmarked(row.live, glyphs)),
            ("warn" if row.queued else "dim", unmarked(row.queued, glyphs)),
            ("", compact(row.prompt_tokens, glyphs)),
            ("", compact(row.output_tokens, glyphs)),
            ("", whole(row.tok_s, glyphs)),
            (above(row.oldest_s, 300.0, 1800.0, ""), duration(row.oldest_s, glyphs)),
        ]
        for row in top.clients[: max(0, height - 1)]
    ]
    return tables.table(names, rows, glyphs, left=frozenset({0}))


def request_detail(row: RequestRow, logs: Sequence[str], glyphs: Glyphs) -> list[Line]:
    """All that is known of one request, and the log's last lines that name it."""
    done = row.phase == "done"
    state = f"ended: {inert(row.finish, glyphs)}" if done else row.phase
    if row.prefilled_tokens is not None:
        share = row.prefilled_tokens / max(1, row.prompt_tokens)
        state += f", {row.prefilled_tokens:,} tokens of the prompt ({percent(share)})"
    pairs = [
        ("state", state),
        ("client", inert(row.client, glyphs) or glyphs.dash),
        ("prompt", f"{row.prompt_tokens:,} tokens, {row.cached_tokens:,} from the prefix cache"),
        ("output", f"{row.output_tokens:,} of at most {row.max_tokens:,} tokens"),
        ("waited", brief(row.queue_s, glyphs)),
        ("first token", f"after {brief(row.ttft_s, glyphs)}"),
        ("speed", f"{whole(row.tok_s, glyphs)} tok/s"),
        ("took" if done else "age", brief(row.age_s, glyphs)),
    ]
    lines = [said(inert(row.id, glyphs), "head"), said("")]
    lines += [(("dim", f"{name:<12} "), ("", value)) for name, value in pairs]
    named = [line for line in logs if row.id in line][-5:]
    if named:
        lines += [said(""), *(tables.log_line(line, glyphs, short=True) for line in named)]
    return lines
