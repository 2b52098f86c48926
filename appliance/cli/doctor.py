"""appliance doctor: each condition for serving here, with a verdict and a cure."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from appliance import paths
from appliance.cli import conditions, exchange, toolkit
from appliance.cli.bundle import write_bundle
from appliance.cli.conditions import Check
from appliance.cli.output import Output, gigabytes
from appliance.cli.prepare import Asked, prepare
from appliance.cli.version import version_data
from appliance.client import Client
from appliance.errors import ApplianceError, BusyError, NotRunningError
from appliance.hardware import HardwareSnapshot, Peers, detect, peers
from appliance.profiles import match, store
from appliance.supervisor.claim import bind

OLDEST_SM = 75
_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "block": ("✗", "red")}


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8000, help="Port to be served on.")
@click.option("--for", "model", metavar="MODEL", help="Whether this model can be served here.")
@click.option("--profile", help="Whether this profile can be used here.")
@click.option("--network", "ask", is_flag=True, help="Ask the hubs, too.")
@click.option("--links", is_flag=True, help="Let each pair of GPUs exchange bytes, timed.")
@click.option(
    "--bundle",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write findings, settings and logs to FILE (.tar.gz), without secrets.",
)
@click.pass_context
def doctor(
    ctx: click.Context,
    port: int,
    model: str | None,
    profile: str | None,
    ask: bool,
    links: bool,
    bundle: Path | None,
) -> None:
    """Check this machine. Exit code 8 when something stands in the way."""
    out = ctx.find_object(Output) or Output()
    hardware = detect()
    checks = examine(hardware, port)
    if model or profile:
        checks.append(_serving(model, profile))
    if links:
        if len(hardware.gpus) > 1:
            out.note("Each pair of GPUs exchanges bytes; that takes up to a minute a round.")
        checks += exchange.exchange(hardware)
    if ask and not os.environ.get("APPLIANCE_OFFLINE"):
        checks += conditions.network(conditions.hubs())
    lines = []
    for check in checks:
        mark, color = _MARKS[check.verdict]
        lines.append(f"{out.paint(mark, color)} {check.name:<10} {check.found}")
        if check.fix:
            first, *others = check.fix.split("\n")
            lines.append(f"             fix  {first}")
            lines += [f"                  {line}" for line in others]
    blocked = [c.name for c in checks if c.verdict == "block"]
    lines.append("")
    if blocked:
        lines.append(f"In the way: {', '.join(blocked)}.")
    else:
        chosen = match.choose(store.load().values(), hardware)
        lines.append(f"Ready to serve with profile {chosen.profile.name}: {chosen.why}.")
    data = {
        "schema": "appliance.doctor/1",
        "ok": not blocked,
        "checks": [msgspec.to_builtins(c) for c in checks],
    }
    if bundle is not None:
        held = write_bundle(bundle, data, version_data())
        out.note(f"{bundle} holds {', '.join(held)}; read it before you send it.")
        data |= {"bundle": str(bundle)}
    out.result("\n".join(lines), data)
    if blocked:
        ctx.exit(8)


def examine(hardware: HardwareSnapshot, port: int) -> list[Check]:
    """Every check, in the order in which people should cure them."""
    found = [_python(), _cpu(hardware), _memory(hardware), *_gpus(hardware)]
    rest: list[Callable[[], Check]] = [
        lambda: conditions.torch_fits(hardware),
        lambda: conditions.flashinfer(hardware),
        lambda: conditions.compilers(hardware),
        lambda: conditions.shared_memory(hardware),
        _disk,
        conditions.disk_speed,
        _runtime_dir,
        _files,
        lambda: _port(port),
        _default_model,
    ]
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    maybe = [
        conditions.links(hardware, peers() if len(hardware.gpus) > 1 else Peers()),
        conditions.throttling(hardware),
        conditions.memory_lock(hardware, soft, resource.RLIM_INFINITY),
    ]
    return found + [c for c in maybe if c is not None] + [check() for check in rest]


def _serving(model: str | None, profile: str | None) -> Check:
    """What `up` would say of a model and a profile, without starting anything."""
    try:
        found = prepare(Asked(model, profile=profile, weights=False))
    except ApplianceError as e:
        return Check("serve", "block", e.message.replace("\n", "; "), e.hint.partition("\n")[0])
    text = f"{found.plan.config.model.id} with profile {found.plan.config.profile}: "
    text += f"{found.fit.numbers()}, context {found.plan.config.model.context:,}"
    return Check("serve", "warn" if found.warnings else "ok", text, "; ".join(found.warnings))


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok", version)


def _cpu(hardware: HardwareSnapshot) -> Check:
    return Check("cpu", "ok", f"{hardware.cores} cores")


def _memory(hardware: HardwareSnapshot) -> Check:
    text = f"{gigabytes(hardware.memory_available)} of {gigabytes(hardware.memory_total)} free"
    if hardware.memory_available < 1 << 30:
        return Check("memory", "block", text, "stop other programs: 1 GB is the least")
    if hardware.memory_available < 4 << 30:
        return Check("memory", "warn", text, "large models need more to load")
    return Check("memory", "ok", text)


def _gpus(hardware: HardwareSnapshot) -> list[Check]:
    if hardware.problem:
        return [Check("gpu", "block", hardware.problem, toolkit.broken_driver(hardware.problem))]
    if not hardware.gpus:
        there = toolkit.gpu_without_driver()
        if there:
            text = f"one at PCI {there}, and no driver: models run on the CPU, slowly"
            return [Check("gpu", "warn", text, toolkit.driver_line())]
        return [Check("gpu", "warn", "none: models run on the CPU, slowly", "")]
    checks = []
    for gpu in hardware.gpus:
        used = gigabytes(gpu.memory_used)
        text = f"{gpu.index}: {gpu.name}, {gigabytes(gpu.memory_total)}, {used} in use"
        holders = ", ".join(f"pid {p.pid} ({p.name})" for p in gpu.processes)
        if gpu.sm < OLDEST_SM:
            fix = f"compute capability {gpu.sm / 10} is below {OLDEST_SM / 10}: use another GPU"
            checks.append(Check("gpu", "block", text, fix))
        elif gpu.memory_used > gpu.memory_total // 10:
            fix = f"stop {holders}" if holders else "stop what holds it"
            checks.append(Check("gpu", "warn", text, fix))
        else:
            checks.append(Check("gpu", "ok", text))
    return checks


def _disk() -> Check:
    from appliance.hub.layout import hf_cache

    folder = hf_cache()
    free = shutil.disk_usage(_existing(folder)).free
    text = f"{gigabytes(free)} free for models in {folder}"
    if free < 2e9:
        return Check("disk", "warn", text, "make room, or point HF_HOME at a larger disk")
    return Check("disk", "ok", text)


def _runtime_dir() -> Check:
    try:
        folder = paths.private_dir(paths.runtime_dir())
    except (ApplianceError, OSError) as e:
        text = e.message if isinstance(e, ApplianceError) else str(e)
        return Check("runs", "block", text, "point APPLIANCE_RUNTIME_DIR at a folder of your own")
    free = shutil.disk_usage(folder).free
    if free < 64 << 20:
        return Check("runs", "block", f"{gigabytes(free)} free in {folder}", "make room there")
    if len(str(paths.engine_socket(folder / "default", 0))) > 100:
        text = f"{folder} is too long a path for a Unix socket"
        return Check("runs", "block", text, "point APPLIANCE_RUNTIME_DIR at a shorter one")
    return Check("runs", "ok", str(folder))


def _files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft} open files allowed"
    if soft < 1024:
        return Check("ulimit", "block", text, "ulimit -n 65536")
    if soft < 4096:
        most = "65536" if hard == resource.RLIM_INFINITY else str(min(hard, 65536))
        return Check("ulimit", "warn", text, f"ulimit -n {most}, for thousands of clients")
    return Check("ulimit", "ok", text)


def _port(port: int) -> Check:
    try:
        bind("127.0.0.1", port).close()
    except BusyError as e:
        try:
            status = Client(paths.control_socket(paths.runtime_dir() / "default")).status()
            if status.url.endswith(f":{port}"):
                return Check("port", "ok", f"{port}: the run '{status.run}' ({status.state})")
        except NotRunningError:
            pass
        return Check("port", "warn", e.message.rstrip("."), e.hint)
    except ApplianceError as e:
        return Check("port", "block", e.message, e.hint)
    return Check("port", "ok", f"{port} is free")


def _default_model() -> Check:
    if (paths.default_model() / "model.safetensors").is_file():
        return Check("model", "ok", "the embedded default model is here")
    return Check("model", "warn", "no embedded default model", "appliance pull MODEL")


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder if os.access(folder, os.R_OK) else Path("/")
