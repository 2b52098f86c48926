"""appliance events: what has happened to a run, and what happens."""

from __future__ import annotations

import click
import msgspec

from appliance import paths
from appliance.cli.output import Output
from appliance.cli.prepare import run_folder
from appliance.client import Client
from appliance.status import Event

_STYLES = {"error": "red", "warn": "yellow"}


@click.command()
@click.argument("name", default="default")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until the run ends.")
@click.option("-n", "--lines", type=click.IntRange(0), default=1000, help="At most so many.")
@click.option("--after", default="", metavar="ID", help="Only what came behind this event.")
@click.pass_obj
def events(out: Output, /, name: str, follow: bool, lines: int, after: str) -> None:
    """Phases, deaths, restarts, reloads, alerts and drains of run NAME."""
    client = Client(paths.control_socket(run_folder(name)))
    for event in client.events(after=after, history=lines, follow=follow):
        out.result(_text(out, event), msgspec.to_builtins(event))


def _text(out: Output, event: Event) -> str:
    kind = event.kind.replace("_", " ")
    if event.level in _STYLES:
        kind = out.paint(f"{kind:<10}", _STYLES[event.level])
    lines = [f"{event.at}  {kind:<10}  {event.message}"]
    fix = str(event.detail.get("fix") or "") if event.kind == "alert" else ""
    lines += [f"    {line}" for line in str(event.detail.get("why") or "").split("\n") if line]
    return "\n".join([*lines, *([f"    fix   {fix}"] if fix else [])])
