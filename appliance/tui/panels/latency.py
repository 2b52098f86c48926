"""The latency page: how times and lengths of the last minute are spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from appliance.status import TopSnapshot
from appliance.tui.graphs import gauge
from appliance.tui.text import Glyphs, Line, bare, compact, fit, fit_line, plural, said, timed

_BLOCKS = {
    "ttft_s": "time to first token",
    "itl_s": "between tokens",
    "e2e_s": "whole request",
    "queue_s": "wait in the queue",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
}
_BLOCK_WIDTH = 44
_LABEL, _COUNT = 9, 6
_SMALLEST = 3
"""Lines of a block below which the last ones are left out."""


def latency_panel(top: TopSnapshot, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """A block for each time and length, side by side where there is room."""
    across = max(1, min(3, width // _BLOCK_WIDTH))
    rows = min(math.ceil(len(_BLOCKS) / across), max(1, height // _SMALLEST))
    names = list(_BLOCKS)[: rows * across]
    tall, wide = max(1, height // rows), width // across
    lines: list[Line] = []
    for row in range(rows):
        blocks = [
            _block(top, name, wide - 2, tall - (tall > _SMALLEST), glyphs)
            for name in names[row * across : (row + 1) * across]
        ]
        for at in range(tall):
            line: Line = ()
            for block in blocks:
                line += fit_line(block[at] if at < len(block) else (), wide, glyphs)
            lines.append(line)
    return lines


def _block(top: TopSnapshot, name: str, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """A head with the quantiles, then a bar for each bucket."""
    seconds = name.endswith("_s")
    found = top.distributions_60s.get(name, {})
    counts, bounds = found.get("counts", []), found.get("bounds", [])
    total = sum(counts)
    head: Line = (("head", _BLOCKS[name]),)
    if seconds:
        spread = top.latency_60s.get(name, {})
        whole = head + _quantiles(spread, ("p50", "p90", "p99"), glyphs)
        fits = len(bare(whole)) <= width
        head = whole if fits else head + _quantiles(spread, ("p50", "p99"), glyphs)
    elif total:
        head += (("dim", f"  {plural(total, 'request')}"),)
    if not total:
        return [head, said("nothing in the last minute", "dim")][:height]
    return [head, *_bars(counts, bounds, seconds, width, height - 1, glyphs)]


def _quantiles(spread: Mapping[str, float | None], names: Sequence[str], glyphs: Glyphs) -> Line:
    line: Line = ()
    for name in names:
        line += (("dim", f"  {name} "), ("value", timed(spread.get(name), glyphs)))
    return line


def _bars(
    counts: Sequence[float],
    bounds: Sequence[float],
    seconds: bool,
    width: int,
    height: int,
    glyphs: Glyphs,
) -> list[Line]:
    """The buckets from the first that has something to the last, joined until they fit."""
    if height < 1:
        return []
    used = [i for i, count in enumerate(counts) if count]
    first, last = used[0], used[-1]
    size = math.ceil((last - first + 1) / height)
    groups = []
    for start in range(first, last + 1, size):
        end = min(start + size, last + 1)
        groups.append((end - 1, sum(counts[start:end])))
    largest = max(count for _, count in groups)
    room = max(1, width - _LABEL - _COUNT - 1)
    lines: list[Line] = []
    for end, count in groups:
        label = "more"
        if end < len(bounds):
            label = f"<{timed(bounds[end]) if seconds else compact(bounds[end])}"
        bar = gauge(count / largest, room, glyphs).rstrip()
        lines.append(
            (
                ("dim", fit(label, _LABEL, glyphs, right=True) + " "),
                ("graph", bar),
                ("", f" {compact(count)}"),
            )
        )
    return lines
