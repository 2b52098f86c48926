"""One snapshot as plain text, for pipes, bug reports and terminals that cannot draw."""

from __future__ import annotations

from appliance.status import TopSnapshot
from appliance.tui import figures
from appliance.tui.figures import UNICODE, Glyphs

_REQUESTS = 20
_LOG_LINES = 8


def render(snapshot: TopSnapshot, width: int = 100, *, glyphs: Glyphs = UNICODE) -> str:
    """Lines of at most ``width`` cells, without escape codes, each section after an empty line."""
    top = snapshot
    sections = [
        [figures.title(top, width, figures.state_words(top, glyphs), glyphs).strip()],
        [f"{figure.label:<14}{figure.line}" for figure in figures.key_figures(top, glyphs)],
        [f"! {text}" for _, text in figures.alert_lines(top, glyphs)],
        _history(top, width, glyphs),
        figures.gpu_lines(top, glyphs) if top.gpus or top.cpu else [],
        _requests(top, width, glyphs),
        [figures.inert(line, glyphs) for line in top.log_tail[-_LOG_LINES:]],
    ]
    cut = (
        "\n".join(figures.fit(line, width, glyphs).rstrip() for line in section)
        for section in sections
        if section
    )
    return "\n\n".join(cut)


def _history(top: TopSnapshot, width: int, glyphs: Glyphs) -> list[str]:
    values = top.history.get("gen_tok_s", [])
    if not any(values):
        return []
    shown, seconds = figures.buckets(values, width)
    span = figures.duration(min(len(values), len(shown) * seconds))
    return [f"gen tok/s, last {span}", figures.bars(shown, len(shown), 1, glyphs)[0]]


def _requests(top: TopSnapshot, width: int, glyphs: Glyphs) -> list[str]:
    if not top.requests:
        return []
    columns = figures.columns_for(width)

    def line(cells: list[str]) -> str:
        return "  ".join(
            figures.fit(cell, c.width, glyphs, right=c.right)
            for cell, c in zip(cells, columns, strict=True)
        )

    rows = figures.chosen_requests(top.requests, "", figures.COLUMNS["age"], False)
    lines = [line([c.name for c in columns])]
    lines += [line([c.cell(row, glyphs) for c in columns]) for row in rows[:_REQUESTS]]
    if len(rows) > _REQUESTS:
        lines.append(f"and {len(rows) - _REQUESTS} more")
    return lines
