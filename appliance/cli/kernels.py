"""appliance kernels build: what a model's first start would compile is compiled ahead of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from appliance import paths
from appliance.bench import offline
from appliance.bench.workload import Workload
from appliance.cli.bench_offline import settings_of
from appliance.cli.cache import folder_size
from appliance.cli.late import LateGroup
from appliance.cli.output import Output, gigabytes
from appliance.cli.prepare import Asked, prepare
from appliance.errors import HardwareError


@click.group(cls=LateGroup)
def kernels() -> None:
    """Kernels that are compiled on this machine."""


@kernels.command()
@click.argument("model", required=False)
@click.option("--profile", help="Settings to use; chosen by the machine when left out.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option("--tp", type=click.IntRange(1), help="GPUs that share one model.")
@click.option("--context", type=click.IntRange(1), help="Longest prompt and answer, in tokens.")
@click.pass_obj
def build(
    out: Output,
    /,
    model: str | None,
    profile: str | None,
    settings: tuple[str, ...],
    tp: int | None,
    context: int | None,
) -> None:
    """Compile what the first start of MODEL with these settings would, so that it need not.

    Weights are made up: config.json is enough. The GPUs must be free, as for a start. What was
    compiled is found by every later start of a model of this shape on a GPU of this kind.
    """
    options: dict[str, Any] = {"tp": tp, "context": context, "load_format": "dummy"}
    prepared = prepare(Asked(model, "kernels", profile, options, settings))
    for warning in prepared.warnings:
        out.warn(warning)
    config = prepared.plan.config
    before = _made()
    out.detail(f"compiling for {config.model.id}")
    task = offline.Inside(
        Workload("fixed:4,4", 1, config.model.id, input_len=4, output_len=4),
        config.model.path,
        settings_of(prepared),
        paths.kernel_variables(),
    )
    facts = offline.ready(task)
    if facts["plain"]:
        raise HardwareError(
            f"a kernel cannot be compiled here: {facts['plain']}",
            "Run `appliance doctor`: it names the compiler or the library that is missing.",
        )
    size, files = (now - then for now, then in zip(_made(), before, strict=True))
    where = ", ".join(sorted({str(folder) for folder in _folders()}))
    device = config.engine.device
    told = (
        f"{files} new files, {gigabytes(size)}, in {where}" if files > 0 else "nothing was missing"
    )
    if device != "cuda" and not config.engine.compile:
        told = "on a CPU nothing is compiled ahead, but with engine.compile"
    out.result(
        f"{config.model.id}: ready in {facts['ready_s']:.1f} s; {told}",
        {
            "schema": "appliance.kernels/1",
            "model": config.model.id,
            "profile": config.profile,
            "device": device,
            "ready_s": facts["ready_s"],
            "compile_s": facts["compile_s"],
            "new_files": max(files, 0),
            "new_bytes": max(size, 0),
            "folders": [str(folder) for folder in _folders()],
        },
    )


def _folders() -> list[Path]:
    """Where compilers keep what they made."""
    found = {k: Path(v) for k, v in paths.kernel_variables().items()}
    base = found["FLASHINFER_WORKSPACE_BASE"] / ".cache" / "flashinfer"
    inductor = found["TORCHINDUCTOR_CACHE_DIR"]
    return [found["TRITON_CACHE_DIR"], base, found["CUDA_CACHE_PATH"], inductor]


def _made() -> tuple[int, int]:
    """(bytes, files)"""
    each = [folder_size(folder) for folder in _folders()]
    return sum(size for size, _ in each), sum(count for _, count in each)
