"""appliance explain: what a code means, why it comes and what cures it."""

from __future__ import annotations

import click

from appliance.cli.catalogue import CATALOGUE
from appliance.cli.output import Output, nearest, table
from appliance.errors import NotFoundError


@click.command()
@click.argument("code", required=False)
@click.pass_obj
def explain(out: Output, /, code: str | None) -> None:
    """What error or alert CODE means; without one, the list of codes."""
    if code is None:
        rows = [[known, entry.what] for known, entry in CATALOGUE.items()]
        data = [{"code": known, **entry._asdict()} for known, entry in CATALOGUE.items()]
        out.result(table(rows), {"schema": "appliance.codes/1", "codes": data})
        return
    wanted = code.strip().upper()
    wanted = wanted if wanted.startswith("APL-") else f"APL-{wanted}"
    entry = CATALOGUE.get(wanted)
    if entry is None:
        raise NotFoundError(
            f"no error or alert has the code '{code}'.{nearest(wanted, list(CATALOGUE))}",
            "`appliance explain` lists the codes.",
            code="APL-NOT-016",
        )
    text = f"{wanted}: {entry.what}\n  why   {entry.why}\n  fix   {entry.fix}"
    out.result(text, {"schema": "appliance.code/1", "code": wanted, **entry._asdict()})
