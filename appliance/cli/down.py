"""appliance down and restart."""

from __future__ import annotations

import time

import click

from appliance import paths
from appliance.cli.output import Output
from appliance.cli.prepare import run_folder, runs
from appliance.cli.start import wait_released
from appliance.client import Client
from appliance.errors import NotRunningError
from appliance.supervisor.claim import held

_RELEASE_S = 10.0


@click.command()
@click.argument("name", default="default")
@click.option("-t", "--drain", type=click.FloatRange(0), default=30.0, help="Seconds to finish in.")
@click.option("--now", is_flag=True, help="Wait for nobody.")
@click.option("--all", "everything", is_flag=True, help="Every run of this user.")
@click.pass_obj
def down(out: Output, /, name: str, drain: float, now: bool, everything: bool) -> None:
    """Drain the live requests, then stop the run NAME."""
    folders = [r for r in runs() if held(r)] if everything else [run_folder(name)]
    ended = []
    for run in folders:
        began = time.monotonic()
        client = Client(paths.control_socket(run))
        try:
            client.down(0.0 if now else drain, out.note)
        except NotRunningError:
            # nobody answers, but somebody holds the name: it is just going
            wait_released(run, _RELEASE_S)
            if held(run):
                raise
            out.note(f"Nothing runs under the name '{run.name}'.")
            continue
        while held(run) and time.monotonic() - began < drain + _RELEASE_S:
            time.sleep(0.02)
        ended.append({"run": run.name, "duration_s": round(time.monotonic() - began, 3)})
    text = "\n".join(f"{e['run']}: stopped" for e in ended) or "nothing to stop"
    out.result(text, {"schema": "appliance.down/1", "stopped": ended})


@click.command()
@click.argument("name", default="default")
@click.option("--rolling", is_flag=True, help="One after the other; the others serve meanwhile.")
@click.pass_obj
def restart(out: Output, /, name: str, rolling: bool) -> None:
    """Start the engines of run NAME again; live requests wait and go on."""
    client = Client(paths.control_socket(run_folder(name)))
    before = client.status()
    client.restart(rolling)
    out.result(
        f"{before.run}: engines are starting again; `appliance status` shows how far they are",
        {"schema": "appliance.restart/1", "run": before.run},
    )
