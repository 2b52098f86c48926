"""What a run says: a table for people, one JSON line for the record, a comparison with another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from appliance.bench.load import Record
from appliance.errors import NotFoundError, UsageError

_LATENCY_NAMES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "gap between tokens",
    "e2e": "whole request",
}
_SHOWN = ("mean", "p50", "p90", "p99", "max")
COMPARED = (
    "req_s",
    "in_tok_s",
    "out_tok_s",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "tpot_ms_p50",
    "tpot_ms_p99",
    "itl_ms_p50",
    "itl_ms_p99",
    "e2e_ms_p50",
    "e2e_ms_p99",
    "completed",
    "failed",
)


def number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "–"
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def table(figures: dict[str, Any], title: str) -> str:
    """The figures of one run for people."""
    pairs = [
        ("requests", f"{figures['completed']:,} completed, {figures['failed']:,} failed"),
        ("duration", f"{number(figures['duration_s'], 2)} s"),
        ("tokens", f"{figures['input_tokens']:,} in, {figures['output_tokens']:,} out"),
        ("requests/s", number(figures["req_s"], 2)),
        ("input tok/s", number(figures["in_tok_s"])),
        (
            "output tok/s",
            f"{number(figures['out_tok_s'])}  (busiest second "
            f"{number(figures['peak_out_tok_s'], 0)} chunks)",
        ),
        (
            "under way",
            f"{number(figures['concurrency'])} on average, at most "
            f"{number(figures['peak_concurrency'])}",
        ),
    ]
    if "goodput_req_s" in figures:
        limits = ", ".join(f"{k} ≤ {v:g} ms" for k, v in figures["slo"].items())
        pairs.append(
            (
                "goodput",
                f"{number(figures['goodput_req_s'], 2)} req/s, "
                f"{figures['slo_share']:.1%} of all meet {limits}",
            )
        )
    lines = [title, *(f"  {name:<14} {value}" for name, value in pairs), ""]
    lines.append(f"  {'ms':<22}" + "".join(f"{s:>11}" for s in _SHOWN))
    for key, name in _LATENCY_NAMES.items():
        values = (number(figures[f"{key}_ms_{s}"], 2) for s in _SHOWN)
        lines.append(f"  {name:<22}" + "".join(f"{value:>11}" for value in values))
    return "\n".join(lines)


def warnings(figures: dict[str, Any], records: Iterable[Record]) -> list[str]:
    """What makes the figures less than they seem: failures by cause, answers cut short."""
    causes = Counter(record.error for record in records if record.error)
    said = [f"{count} failed: {cause}" for cause, count in causes.most_common(5)]
    if len(causes) > 5:
        said.append(f"and {len(causes) - 5} more causes")
    if figures["short"]:
        said.append(f"{figures['short']} answers have fewer tokens than asked for")
    if figures["without_text"]:
        said.append(
            f"{figures['without_text']} answers had no text at all: they are in no TTFT or TPOT"
        )
    return said


def append(path: Path, line: dict[str, Any]) -> None:
    """Adds one JSON object as a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(line) + b"\n")


def load_rows(source: str) -> dict[str, dict[str, Any]]:
    """The latest line of each row of a results file; ``FILE#ROW`` takes that row alone.

    Raises NotFoundError, UsageError.
    """
    name, _, only = source.partition("#")
    try:
        text = Path(name).read_bytes()
    except OSError as problem:
        raise NotFoundError(
            f"{name} cannot be read: {problem.strerror}.", "Write one with --append."
        ) from problem
    rows: dict[str, dict[str, Any]] = {}
    for place, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as problem:
            raise UsageError(
                f"Line {place} of {name} is no JSON object: {problem}.",
                "Give a file that --append wrote.",
            ) from problem
        rows[str(found.get("row", ""))] = found
    if only:
        if only not in rows:
            raise NotFoundError(
                f"{name} has no row {only!r}.", f"It has: {', '.join(rows) or 'none'}."
            )
        return {only: rows[only]}
    return rows


@dataclass(frozen=True)
class Gate:
    """``ttft_ms_p99>+10%``: fails when B is above A by more than 10 %. Without %, B's own value."""

    text: str
    metric: str
    above: bool
    limit: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Gate:
        found = re.fullmatch(r"\s*(\w+)\s*([<>])\s*([+-]?[\d.]+)\s*(%?)\s*", text)
        if not found:
            raise UsageError(
                f"{text!r} is no gate.", "Write such as 'ttft_ms_p99>+10%' or 'out_tok_s<-5%'."
            )
        return cls(text.strip(), found[1], found[2] == ">", float(found[3]), bool(found[4]))

    def failure(self, a: dict[str, Any], b: dict[str, Any]) -> str:
        """Why the gate is not met; empty when it is. A value that is missing does not meet it."""
        new, old = b.get(self.metric), a.get(self.metric)
        if not isinstance(new, int | float) or (self.relative and not isinstance(old, int | float)):
            return f"{self.text}: no value of {self.metric}"
        value = float(new)
        if self.relative:
            if not old:
                return f"{self.text}: {self.metric} was 0" if new else ""
            value = (new / old - 1) * 100
        if (value > self.limit) if self.above else (value < self.limit):
            shown = f"{value:+.1f}%" if self.relative else f"{value:,.2f}"
            return f"{self.text}: {self.metric} {shown}"
        return ""


@dataclass(frozen=True)
class Comparison:
    """text: for people. data: by row and metric, [a, b, change]. failures: of the gates."""

    text: str
    data: dict[str, dict[str, list[float | None]]]
    failures: list[str]


def compare(
    a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]], gates: list[Gate]
) -> Comparison:
    """Raises UsageError when the two have no row in common."""
    if len(a) == len(b) == 1:
        shared = [(next(iter(a)), next(iter(a.values())), next(iter(b.values())))]
    else:
        shared = [(row, a[row], b[row]) for row in a if row in b]
    if not shared:
        raise UsageError(
            "The two have no row in common.",
            f"A has {', '.join(a) or 'none'}; B has {', '.join(b) or 'none'}.",
        )
    lines: list[str] = []
    data: dict[str, dict[str, list[float | None]]] = {}
    failures: list[str] = []
    asked = [g.metric for g in gates if g.metric not in COMPARED]
    for row, old, new in shared:
        lines.append(f"{row or '(no name)'}")
        lines.append(f"  {'':<16}{'A':>14}{'B':>14}{'change':>10}")
        data[row] = {}
        for metric in (*COMPARED, *dict.fromkeys(asked)):
            x, y = old.get(metric), new.get(metric)
            both = isinstance(x, int | float) and isinstance(y, int | float)
            change = y / x - 1 if both and x else None
            data[row][metric] = [x, y, change]
            moved = f"{change:+.1%}" if change is not None else "–"
            lines.append(f"  {metric:<16}{number(x, 2):>14}{number(y, 2):>14}{moved:>10}")
        failures += [f"{row}: {why}" if row else why for g in gates if (why := g.failure(old, new))]
    return Comparison("\n".join(lines), data, failures)
