"""Two records, row by row: medians, how far repeated runs lie apart, and gates that can fail.

A row's samples are the lines of its latest state: those that share the commit of its last line.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from appliance.bench.report import number
from appliance.errors import NotFoundError, UsageError

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
REGRESSION = (
    "out_tok_s<-5%",
    "ttft_ms_p50>+10%",
    "tpot_ms_p50>+5%",
    "failed>0",
    "host_us>+15%",
    "idle_share>+20%",
    "ready_s_warm>+20%",
    "ready_s_cold>+20%",
)
"""The gates against a record when none are given; a row is held to those that it has figures of."""

Lines = list[dict[str, Any]]


def load_rows(source: str) -> dict[str, Lines]:
    """The samples of each row of a results file; ``FILE#ROW`` takes that row alone.

    Raises NotFoundError, UsageError.
    """
    name, _, only = source.partition("#")
    try:
        text = Path(name).read_bytes()
    except OSError as problem:
        raise NotFoundError(
            f"{name} cannot be read: {problem.strerror}.",
            "Write one with --append or --save.",
            code="APL-NOT-018",
        ) from problem
    rows: dict[str, Lines] = {}
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
        rows.setdefault(row_of(found), []).append(found)
    latest = {row: [x for x in kept if _state(x) == _state(kept[-1])] for row, kept in rows.items()}
    if only:
        if only not in latest:
            raise NotFoundError(
                f"{name} has no row {only!r}.",
                f"It has: {', '.join(latest) or 'none'}.",
                code="APL-NOT-020",
            )
        return {only: latest[only]}
    return latest


def row_of(line: dict[str, Any]) -> str:
    """A line's row; of a sweep each point is a row of its own."""
    return " ".join(str(part) for part in (line.get("row", ""), line.get("point")) if part)


def _state(line: dict[str, Any]) -> tuple[Any, Any]:
    return line.get("commit"), line.get("gpu")


@dataclass(frozen=True)
class Sample:
    """A figure of one row: the median of its runs, and their ends."""

    middle: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, lines: Lines, metric: str) -> Sample | None:
        """None when no line has a number there."""
        values = [line.get(metric) for line in lines]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if not numbers:
            return None
        return cls(statistics.median(numbers), min(numbers), max(numbers), len(numbers))

    def overlaps(self, other: Sample) -> bool:
        return self.low <= other.high and other.low <= self.high

    @property
    def spread(self) -> float | None:
        """Half the way between the ends, as a share of the median; None for a single run."""
        if self.runs < 2 or not self.middle:
            return None
        return (self.high - self.low) / 2 / abs(self.middle)


@dataclass(frozen=True)
class Gate:
    """``ttft_ms_p99>+10%``: fails when B is above A by more than 10 %. Without %, B's own value.

    optional: where A has no such figure there is nothing to hold B to.
    """

    text: str
    metric: str
    above: bool
    limit: float
    relative: bool
    optional: bool = False

    @classmethod
    def regression(cls) -> list[Gate]:
        """Those of REGRESSION."""
        return [replace(cls.parse(text), optional=True) for text in REGRESSION]

    @classmethod
    def parse(cls, text: str) -> Gate:
        found = re.fullmatch(r"\s*(\w+)\s*([<>])\s*([+-]?[\d.]+)\s*(%?)\s*", text)
        if not found:
            raise UsageError(
                f"{text!r} is no gate.", "Write such as 'ttft_ms_p99>+10%' or 'out_tok_s<-5%'."
            )
        return cls(text.strip(), found[1], found[2] == ">", float(found[3]), bool(found[4]))

    def judge(self, a: Lines, b: Lines) -> tuple[str, bool]:
        """(what is to be said, whether the gate failed). A value that is missing fails it.

        A change beyond the limit is no failure while runs of A and B lie among each other.
        """
        old, new = Sample.of(a, self.metric), Sample.of(b, self.metric)
        if self.optional and old is None:
            return "", False
        if new is None or (self.relative and old is None):
            return f"{self.text}: no value of {self.metric}", True
        if not self.relative:
            worst = new.high if self.above else new.low
            return f"{self.text}: {self.metric} {number(worst, 2)}", self._beyond(worst)
        assert old is not None
        if not old.middle:
            return f"{self.text}: {self.metric} was 0", bool(new.middle)
        change = (new.middle / old.middle - 1) * 100
        said = f"{self.text}: {self.metric} {change:+.1f}%"
        if not self._beyond(change):
            return said, False
        if old.overlaps(new) and max(old.runs, new.runs) > 1:
            return f"{said} is within the noise of the runs: repeat them", False
        return said, True

    def _beyond(self, value: float) -> bool:
        return value > self.limit if self.above else value < self.limit


@dataclass(frozen=True)
class Comparison:
    """text: for people. data: by row and metric that one of them has, [a, b, change]. failures: of
    the gates.

    notes: what makes the comparison less than it seems, rows that B lacks among it.
    """

    text: str
    data: dict[str, dict[str, list[float | None]]]
    failures: list[str]
    notes: list[str]


def compare(a: dict[str, Lines], b: dict[str, Lines], gates: list[Gate]) -> Comparison:
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
    asked = [g.metric for g in gates if g.metric not in COMPARED]
    metrics = [*COMPARED, *dict.fromkeys(asked)]
    lines: list[str] = []
    data: dict[str, dict[str, list[float | None]]] = {}
    failures: list[str] = []
    left_out = [row for row in a if row not in b] if len(a) > 1 else []
    notes = [f"B has no {', '.join(left_out)}: nothing is said of them"] if left_out else []
    for row, old, new in shared:
        text, data[row] = _table(row, old, new, metrics)
        lines += text
        named = f"{row}: " if row else ""
        if old[-1].get("gpu") != new[-1].get("gpu"):
            notes.append(
                f"{named}A was measured on {old[-1].get('gpu')}, B on {new[-1].get('gpu')}"
            )
        for gate in gates:
            said, failed = gate.judge(old, new)
            if failed:
                failures.append(named + said)
            elif "noise" in said:
                notes.append(named + said)
    return Comparison("\n".join(lines), data, failures, notes)


def _table(
    row: str, old: Lines, new: Lines, metrics: list[str]
) -> tuple[list[str], dict[str, list[float | None]]]:
    runs = f"  ({len(old)} and {len(new)} runs)" if max(len(old), len(new)) > 1 else ""
    lines = [f"{row or '(no name)'}{runs}"]
    lines.append(f"  {'':<16}{'A':>22}{'B':>22}{'change':>10}")
    data: dict[str, list[float | None]] = {}
    for metric in metrics:
        x, y = Sample.of(old, metric), Sample.of(new, metric)
        if x is None and y is None:
            continue
        change = y.middle / x.middle - 1 if x and y and x.middle else None
        data[metric] = [x.middle if x else None, y.middle if y else None, change]
        moved = f"{change:+.1%}" if change is not None else "–"
        lines.append(f"  {metric:<16}{_shown(x):>22}{_shown(y):>22}{moved:>10}")
    if not data:
        lines[1:] = ["  no figure that both have in common is compared"]
    return lines, data


def _shown(sample: Sample | None) -> str:
    if sample is None:
        return "–"
    text = number(sample.middle, 2) if abs(sample.middle) >= 1 else f"{sample.middle:.3g}"
    return f"{text} ±{sample.spread:.1%}" if sample.spread is not None else text
