"""appliance down and restart."""

from __future__ import annotations

import time
from pathlib import Path

import click
import msgspec

from appliance import paths
from appliance.cli.output import Output
from appliance.cli.prepare import run_folder, runs
from appliance.cli.start import wait_released
from appliance.client import Client
from appliance.errors import NotRunningError
from appliance.supervisor import devices
from appliance.supervisor.claim import held
from appliance.supervisor.devices import Holder

_RELEASE_S = 10.0 + devices.LIMIT_S


@click.command()
@click.argument("name", default="default")
@click.option("-t", "--drain", type=click.FloatRange(0), default=30.0, help="Seconds to finish in.")
@click.option("--now", is_flag=True, help="Wait for nobody.")
@click.option("--all", "everything", is_flag=True, help="Every run of this user.")
@click.pass_obj
def down(out: Output, /, name: str, drain: float, now: bool, everything: bool) -> None:
    """Drain the live requests, then stop the run NAME."""
    folders = [r for r in runs() if held(r)] if everything else [run_folder(name)]
    ended, holding = [], []
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
            holding += _left(out, run)
            continue
        while held(run) and time.monotonic() - began < drain + _RELEASE_S:
            time.sleep(0.02)
        ended.append({"run": run.name, "duration_s": round(time.monotonic() - began, 3)})
        if not held(run):
            holding += devices.freed(run, 0.0) or []  # the supervisor has waited, and told
    text = "\n".join(f"{e['run']}: stopped" for e in ended) or "nothing to stop"
    out.result(
        text,
        {
            "schema": "appliance.down/1",
            "stopped": ended,
            "holding": [msgspec.to_builtins(holder) for holder in holding],
        },
    )


def _left(out: Output, run: Path) -> list[Holder]:
    """What the engines of a run whose supervisor was killed still hold of the GPUs, when the driver
    has had its time."""
    holding = devices.freed(run)
    if holding:
        out.warn("; ".join(h.words for h in holding) + f"\n{devices.cure(holding)}")
    elif holding is not None:
        out.note("The driver says that the GPUs have their memory back.")
    return holding or []


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
