"""appliance version: of everything that matters, without loading any of it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from http.client import HTTPException
from typing import Any

import click

from appliance import address, paths
from appliance.cli.output import Output
from appliance.cli.prepare import runs
from appliance.client import Client
from appliance.errors import NotRunningError
from appliance.hardware import detect

_PACKAGES = ("torch", "flashinfer-python", "triton", "transformers", "tokenizers", "safetensors")


@click.command()
@click.option("--check", is_flag=True, help="Whether live runs are of this version. Exit code 1.")
@click.pass_context
def version(ctx: click.Context, check: bool) -> None:
    """Versions of the appliance, its engine's parts, and the driver."""
    out = ctx.find_object(Output) or Output()
    data: dict[str, Any] = version_data()
    text = "\n".join(f"{name:<18} {value or '-'}" for name, value in data.items())
    if not check:
        out.result(text, {"schema": "appliance.version/1", **data})
        return
    served = live_versions()
    odd = [name for name, found in served.items() if found != data["appliance"]]
    for name, found in served.items():
        text += f"\n{f'run {name}':<18} {found or 'does not say'}"
    for name in odd:
        text += f"\n  fix   appliance down {name} && appliance up …     starts it with this version"
    told = [{"run": name, "appliance": found} for name, found in served.items()]
    out.result(text, {"schema": "appliance.version/1", **data, "runs": told, "ok": not odd})
    if odd:
        ctx.exit(1)


def live_versions() -> dict[str, str | None]:
    """Run -> the version that serves it; None where it does not answer."""
    found: dict[str, str | None] = {}
    for folder in runs():
        try:
            url = Client(paths.control_socket(folder), timeout=3.0).status().url
        except NotRunningError:
            continue
        connection = address.connection(url, 3.0)
        try:
            connection.request("GET", "/version")
            found[folder.name] = str(json.load(connection.getresponse())["version"])
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            found[folder.name] = None
        finally:
            connection.close()
    return found


def version_data() -> dict[str, str | None]:
    machine = detect()
    return {
        "appliance": of("appliance"),
        "python": platform.python_version(),
        **{name: of(name) for name in _PACKAGES},
        "driver": machine.driver or None,
        "cuda_driver": machine.cuda or None,
        "platform": platform.platform(),
    }


def of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
