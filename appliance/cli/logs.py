"""appliance logs: of a live run from its supervisor, of an ended one from its file."""

from __future__ import annotations

import click

from appliance import paths
from appliance.cli.output import Output
from appliance.cli.prepare import run_folder
from appliance.client import Client
from appliance.errors import NotRunningError
from appliance.supervisor.logs import Filter, read_file


@click.command()
@click.argument("name", default="default")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines.")
@click.option("-n", "--lines", type=click.IntRange(0), default=200, help="How many lines.")
@click.option("--component", default="", help="supervisor, frontend, engine, engine-0, engine-0.1")
@click.option(
    "--level",
    default="",
    type=click.Choice(["", "debug", "info", "warning", "error"]),
    help="That and worse.",
)
@click.pass_obj
def logs(out: Output, /, name: str, follow: bool, lines: int, component: str, level: str) -> None:
    """What the processes of run NAME have said."""
    client = Client(paths.control_socket(run_folder(name)))
    try:
        if follow:
            for line in client.follow_logs(lines, component, level):
                out.result(line, {"line": line})
            return
        found = client.logs(lines, component, level).splitlines()
    except NotRunningError:
        if follow:
            raise
        path = paths.supervisor_log(name)
        found = read_file(path, lines, Filter(component, level))
        if not found:
            raise
        out.note(f"The run has ended; from {path}:")
    for line in found:
        out.result(line, {"line": line})
