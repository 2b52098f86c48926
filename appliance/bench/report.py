"""What a run says: a table and a sentence for people, one JSON line for the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from appliance.bench.load import Record

_LATENCY_NAMES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "gap between tokens",
    "e2e": "whole request",
}
_SHOWN = ("mean", "p50", "p90", "p99", "max")


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


def verdict(figures: dict[str, Any]) -> str:
    """One sentence of the whole."""
    if not figures["completed"]:
        return "No request was answered."
    said = (
        f"{figures['out_tok_s']:,.0f} output tokens a second with "
        f"{figures['concurrency']:,.0f} requests under way"
    )
    if figures["ttft_ms_p50"] is not None:
        said += f"; half of the answers began within {figures['ttft_ms_p50']:,.0f} ms"
    if figures["tpot_ms_p50"] is not None:
        said += f", then a token every {figures['tpot_ms_p50']:,.1f} ms"
    if "slo_share" in figures:
        said += f"; {figures['slo_share']:.1%} met the SLO"
    return said + "."


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
