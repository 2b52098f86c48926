"""appliance bench compare: two records, and the gate between them."""

from __future__ import annotations

from pathlib import Path

import click

from appliance import paths
from appliance.bench import compare as records
from appliance.cli.output import Output
from appliance.errors import UsageError


@click.command()
@click.argument("a")
@click.argument("b", required=False)
@click.option(
    "--against", metavar="FILE", help="Compare A with this record, with gates of its own."
)
@click.option(
    "--fail-on",
    "gates",
    multiple=True,
    metavar="GATE",
    help="Such as 'ttft_ms_p99>+10%'; exit code 1 when it holds.",
)
@click.pass_context
def compare(
    ctx: click.Context, a: str, b: str | None, against: str | None, gates: tuple[str, ...]
) -> None:
    """Compare records A and B (FILE, FILE#ROW or a saved NAME), row by row.

    Where the latest state of a row has several lines, their median counts, and a change within
    their spread fails no gate. `compare NEW --against RECORD` is the regression gate: RECORD is
    A, and without --fail-on throughput, TTFT, TPOT and failures are held to it.
    """
    out: Output = ctx.obj
    if (b is None) == (against is None):
        raise UsageError("Two records are compared.", "appliance bench compare A B")
    if against is not None:
        a, b = against, a
    parsed = [records.Gate.parse(gate) for gate in gates]
    if against is not None and not parsed:
        parsed = records.Gate.regression()
    old, new = records.load_rows(_place(a)), records.load_rows(_place(b or ""))
    found = records.compare(old, new, parsed)
    data = {
        "schema": "appliance.bench-compare/1",
        "rows": found.data,
        "failures": found.failures,
        "notes": found.notes,
    }
    out.result(found.text, data)
    for note in found.notes:
        out.note(f"note: {note}")
    for failure in found.failures:
        out.warn(f"gate not met: {failure}")
    if found.failures:
        ctx.exit(1)


def _place(source: str) -> str:
    """A file's name as it is; else the record that was saved under that name."""
    name, hash_, row = source.partition("#")
    saved = paths.bench_record(name) if "/" not in name else Path(name)
    return source if Path(name).exists() or not saved.exists() else f"{saved}{hash_}{row}"
