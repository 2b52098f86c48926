"""The table of one H100 in docs/measurements.md, from the last record of each row.

    python -m benchmarks.latest [--write]

Prints it, or puts it in the place of the one that is there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.limits import limit
from benchmarks.rows import GROUPS

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "h100.jsonl"
PAGE = ROOT / "docs" / "measurements.md"
HEAD = "| row | workload | ours | better peer | ratio | goal | limit | commit |"
ROWS = {row.id: row for group in GROUPS for row in group.rows}
MOST_ROWS, POOL = 1024, 420_000
"""What limits.py takes when nothing is said."""


class Figure(NamedTuple):
    """form: how a value is written. None: there is none."""

    name: str
    form: str
    peer: float | None
    goal: float
    limit: float | None
    above: bool = False


class Line(NamedTuple):
    row: str
    workload: str
    figures: tuple[Figure, ...]


def goal(row: str, form: str) -> Figure:
    """The figure that a served row's goal is about."""
    found = ROWS[row]
    bound = limit(found, MOST_ROWS, POOL)
    return Figure(found.figure, form, found.better_peer, found.goal, bound, found.above)


def ttft(peer: float, aim: float, bound: float | None = None) -> Figure:
    return Figure("ttft_ms_p50", ".1f", peer, aim, bound)


def lines() -> list[Line]:
    """In the order of the page."""
    tokens, ms = ",.0f", ".2f"
    weights = goal("bf16-one", ms).limit  # a short prompt takes what reading the weights takes
    return [
        Line("bf16-sharegpt-2000", "2000 at once, sharegpt-like: output tok/s",
             (goal("bf16-sharegpt-2000", tokens),)),
        Line("bf16-mid-600", "600 at once, In[512,1024] Out[128,512]: output tok/s",
             (goal("bf16-mid-600", tokens),)),
        Line("bf16-long-300", "300 at once, In[2048,4096] Out[256,512]: output tok/s",
             (goal("bf16-long-300", tokens),)),
        Line("bf16-rate-8", "8 req/s: median TTFT / TPOT, ms",
             (ttft(23.6, 18), goal("bf16-rate-8", ms))),
        Line("bf16-rate-16", "16 req/s: median TTFT / TPOT, ms",
             (ttft(26.0, 20), goal("bf16-rate-16", ms))),
        Line("bf16-one", "1 stream, 128/256: TTFT / TPOT, ms",
             (ttft(16.7, 12, weights), goal("bf16-one", ms))),
        Line("bf16-16", "16 streams, 512/256: output tok/s", (goal("bf16-16", tokens),)),
        Line("fp8-sharegpt-2000", "8-bit float weights, 2000 at once: output tok/s",
             (goal("fp8-sharegpt-2000", tokens),)),
        Line("fp8-one", "1 stream: TPOT, ms", (goal("fp8-one", ms),)),
        Line("fp8-long-300", "In[2048,4096] Out[256,512]: output tok/s",
             (goal("fp8-long-300", tokens),)),
        Line("fp8-prefix", "64 × 16 prompts, 2048 shared + 128 own → 64: req/s",
             (goal("fp8-prefix", tokens),)),
        Line("start", "`up` to ready, made-up weights: warm caches / empty ones, s",
             (Figure("ready_s_warm", ".1f", 115, 15, None),
              Figure("ready_s_cold", ".1f", 147, 30, None))),
        Line("host", "next step and its inputs at 512 rows, hidden behind the step before: µs",
             (Figure("host_us", ".0f", None, 300, None),)),
        Line("idle", "GPU idle between decode steps at 512 rows: share of the step",
             (Figure("idle_share", ".1%", None, 0.03, None),)),
    ]  # fmt: skip


def latest(record: Path) -> dict[str, dict[str, Any]]:
    """The last record of each row."""
    return {line["row"]: line for line in map(json.loads, record.read_text().splitlines())}


def text_of(line: Line, found: dict[str, Any]) -> str:
    """A line of the table."""
    ours = [float(found[f.name]) for f in line.figures]
    ratios = [
        None if f.peer is None else value / f.peer if f.above else f.peer / value
        for f, value in zip(line.figures, ours, strict=True)
    ]
    cells = (
        line.row,
        line.workload,
        _joined(format(v, f.form) for f, v in zip(line.figures, ours, strict=True)),
        _joined("–" if f.peer is None else f"{f.peer:,g}" for f in line.figures),
        _joined("–" if r is None else f"{r:.2f}" if r < 10 else f"{r:.0f}" for r in ratios),
        _joined(f"{f.goal:.0%}" if "%" in f.form else f"{f.goal:,g}" for f in line.figures),
        _joined("–" if f.limit is None else _bound(f.limit) for f in line.figures),
        str(found["commit"]),
    )
    return f"| {' | '.join(cells)} |"


def _bound(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _joined(parts: Any) -> str:
    kept = list(parts)
    return kept[0] if len(set(kept)) == 1 and kept[0] == "–" else " / ".join(kept)


def table(record: Path = RECORD) -> str:
    found = latest(record)
    rows = [text_of(line, found[line.row]) for line in lines() if line.row in found]
    return "\n".join([HEAD, "|" + "---|" * 8, *rows])


def shown(page: str) -> str:
    """The table as the page has it."""
    return page[page.index("| row | workload |") :].split("\n\n")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        print(table())
        return
    page = PAGE.read_text()
    PAGE.write_text(page.replace(shown(page), table()))


if __name__ == "__main__":
    main()
