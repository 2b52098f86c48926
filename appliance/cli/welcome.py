"""Bare `appliance`: what is here, and what to type next."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click
import msgspec

from appliance import address, paths
from appliance.cli.output import Output, gigabytes
from appliance.cli.prepare import DEFAULT_ID, locate, machine_text
from appliance.cli.rate import Download, download_of
from appliance.client import Client
from appliance.errors import ApplianceError, NotRunningError
from appliance.hardware import detect
from appliance.profiles import match, store


@click.command()
@click.pass_obj
def welcome(out: Output) -> None:
    """What is served, or the three commands that lead there."""
    try:
        status = Client(paths.control_socket(paths.runtime_dir() / "default"), timeout=2).status()
    except NotRunningError:
        status = None
    others = address.listening(paths.control_sockets()) if status is None else []
    if others:
        one = Client(paths.control_socket(paths.runtime_dir() / others[0]), timeout=2)
        out.result(_of_others(others), _told(others[0], one.status().url, None))
        return
    hardware = detect()
    if status is not None:
        state = out.paint(status.state.upper(), "bold")
        text = "\n".join(
            [
                f"{state}  {status.model} at {address.shown(status.url)}",
                "  appliance chat       talk to it",
                "  appliance top        watch it",
                "  appliance down       stop it",
                "All commands: appliance --help",
            ]
        )
        out.result(text, _told(status.run, status.url, None))
        return
    chosen = match.choose(store.load().values(), hardware).profile
    free = gigabytes(shutil.disk_usage(Path.home()).free)
    suggested = chosen.suggest or "MODEL"
    here, download = _is_here(suggested), download_of(suggested)
    text = "\n".join(
        [
            f"No model is being served.   {machine_text(hardware)}   {free} free",
            f"  1. appliance pull {suggested}    {_pull_text(download, here)}",
            f"  2. appliance up {suggested}      serve on http://127.0.0.1:8000/v1 "
            f"with profile {chosen.name} (chosen for you)",
            "  3. appliance chat",
            f"Nothing at hand? `appliance up` alone serves {DEFAULT_ID}, a very small model.",
            "Check this machine: appliance doctor      All commands: appliance --help",
        ]
    )
    data: dict[str, Any] = {**_told(None, None, suggested), "here": here, "download": None}
    if download is not None:
        took = {"duration_s": round(download.seconds, 1)}
        data["download"] = msgspec.to_builtins(download) | took
    out.result(text, data)


def _of_others(names: list[str]) -> str:
    """The screen where runs are up and none of them has the name that is meant by itself."""
    one = names[0]
    return "\n".join(
        [
            f"Serving: {', '.join(names)}   (appliance ps tells where)",
            f"  appliance chat --name {one}       talk to it",
            f"  appliance top {one}               watch it",
            f"  appliance down {one}              stop it",
            "All commands: appliance --help",
        ]
    )


def _is_here(model: str) -> bool:
    try:
        locate(model, None)
    except ApplianceError:
        return False
    return True


def _pull_text(download: Download | None, here: bool) -> str:
    if here:
        return "is here already"
    return f"download ({download.words})" if download else "download"


def _told(run: str | None, url: str | None, suggested: str | None) -> dict[str, str | None]:
    return {"schema": "appliance.welcome/1", "run": run, "url": url, "suggested": suggested}
