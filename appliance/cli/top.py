"""appliance top: the dashboard; without a terminal, one snapshot."""

from __future__ import annotations

import os
import shutil
import sys

import click
import msgspec

from appliance import paths
from appliance.cli.output import Output
from appliance.cli.prepare import run_folder
from appliance.client import Client


@click.command()
@click.argument("name", default="default")
@click.option("--once", is_flag=True, help="Print one snapshot and leave.")
@click.option(
    "--interval", type=click.FloatRange(0.25), default=0.5, help="Seconds between frames."
)
@click.option("--ascii", is_flag=True, help="No characters beyond ASCII.")
@click.option("--readonly", is_flag=True, help="Keys that change anything do nothing.")
@click.pass_obj
def top(
    out: Output, /, name: str, once: bool, interval: float, ascii: bool, readonly: bool
) -> None:
    """Live dashboard of run NAME."""
    client = Client(paths.control_socket(run_folder(name)))
    if once or out.json or not _terminal():
        snapshot = client.top()
        from appliance.tui.once import render

        width = shutil.get_terminal_size((100, 24)).columns
        out.result(render(snapshot, width), msgspec.to_builtins(snapshot))
        return
    client.top()  # nothing runs: said in words, not on a full screen
    from appliance.tui.app import run

    run(client, interval=interval, ascii=ascii, readonly=readonly)


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
