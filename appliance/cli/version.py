"""appliance version: of everything that matters, without loading any of it."""

from __future__ import annotations

import importlib.metadata
import platform

import click

from appliance.cli.output import Output
from appliance.hardware import detect

_PACKAGES = ("torch", "flashinfer-python", "triton", "transformers", "tokenizers", "safetensors")


@click.command()
@click.pass_obj
def version(out: Output) -> None:
    """Versions of the appliance, its engine's parts, and the driver."""
    data = version_data()
    text = "\n".join(f"{name:<18} {value or '-'}" for name, value in data.items())
    out.result(text, {"schema": "appliance.version/1", **data})


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
