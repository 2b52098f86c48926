"""One snapshot as plain text, for pipes, bug reports and terminals that cannot draw."""

from __future__ import annotations

from appliance.status import TopSnapshot
from appliance.tui import figures, graphs, tables
from appliance.tui.text import UNICODE, Glyphs, bare, duration, fit, inert

_REQUESTS = 20
_LOG_LINES = 8


def render(snapshot: TopSnapshot, width: int = 100, *, glyphs: Glyphs = UNICODE) -> str:
    """Lines of at most ``width`` cells, without escape codes, each section after an empty line."""
    top = snapshot
    title = figures.title(top, width, figures.state_words(top, glyphs), glyphs=glyphs)
    machine = tables.gpu_lines(top, width, glyphs) if top.gpus or top.cpu else []
    sections = [
        [bare(title).strip()],
        [f"{figure.label:<14}{figure.line}" for figure in figures.key_figures(top, glyphs)],
        [bare(line) for line in figures.alert_lines(top, glyphs)],
        _history(top, width, glyphs),
        [bare(line) for line in machine],
        _requests(top, width, glyphs),
        [inert(line, glyphs) for line in top.log_tail[-_LOG_LINES:]],
    ]
    cut = (
        "\n".join(fit(line, width, glyphs).rstrip() for line in section)
        for section in sections
        if section
    )
    return "\n\n".join(cut)


def _history(top: TopSnapshot, width: int, glyphs: Glyphs) -> list[str]:
    values = top.history.get("gen_tok_s", [])
    if not any(values):
        return []
    shown, seconds = graphs.buckets(values, width)
    span = duration(min(len(values), len(shown) * seconds))
    return [f"gen tok/s, last {span}", graphs.bars(shown, len(shown), 1, glyphs)[0]]


def _requests(top: TopSnapshot, width: int, glyphs: Glyphs) -> list[str]:
    if not top.requests:
        return []
    columns = tables.columns_for(width)

    def line(cells: list[str]) -> str:
        return "  ".join(
            fit(cell, c.width, glyphs, right=c.right)
            for cell, c in zip(cells, columns, strict=True)
        )

    rows = tables.chosen_requests(top.requests, "", tables.COLUMNS["age"], False)
    lines = [line([c.name for c in columns])]
    lines += [line([c.cell(row, glyphs) for c in columns]) for row in rows[:_REQUESTS]]
    if len(rows) > _REQUESTS:
        lines.append(f"and {len(rows) - _REQUESTS} more")
    return lines
