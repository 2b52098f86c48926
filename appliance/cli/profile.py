"""appliance profile list and show."""

from __future__ import annotations

import click
import msgspec

from appliance.cli.output import Output, table
from appliance.errors import NotFoundError
from appliance.hardware import detect
from appliance.profiles import match, store


@click.group()
def profile() -> None:
    """Settings for a kind of machine."""


@profile.command("list")
@click.pass_obj
def list_(out: Output) -> None:
    """Every profile, and which one this machine gets."""
    found = store.load()
    hardware = detect()
    try:
        chosen = match.choose(found.values(), hardware).profile.name
    except NotFoundError:
        chosen = ""
    rows = [["", "PROFILE", "FOR", "MEASURED", "HERE"]]
    data = []
    for name, stored in found.items():
        problem = match.mismatch(stored.profile, hardware)
        here = "chosen" if name == chosen else problem or "would do"
        measured = "yes" if stored.profile.evidence.measured else "no"
        rows.append(["*" if name == chosen else "", name, stored.profile.summary, measured, here])
        data.append(
            {
                "name": name,
                "summary": stored.profile.summary,
                "measured": stored.profile.evidence.measured,
                "chosen": name == chosen,
                "mismatch": problem or None,
                "path": stored.path,
            }
        )
    out.result(table(rows), {"schema": "appliance.profiles/1", "profiles": data})


@profile.command()
@click.argument("name")
@click.pass_obj
def show(out: Output, /, name: str) -> None:
    """Every value of profile NAME and what it stands on."""
    stored = store.find(name)
    p = stored.profile
    rows = [[field, _value(value)] for field, value in p.values().items()]
    measured = "measured" if p.evidence.measured else "not measured"
    text = "\n".join(
        [
            f"{p.name}: {p.summary}",
            f"  file      {stored.path}",
            f"  evidence  {measured}: {p.evidence.note}",
            "",
            table(rows),
        ]
    )
    data = {"schema": "appliance.profile/1", "path": stored.path} | msgspec.to_builtins(p)
    out.result(text, data)


def _value(value: object) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"{', '.join(map(str, value[:6]))}, … {value[-1]}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
