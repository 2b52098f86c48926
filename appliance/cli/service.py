"""appliance service: a unit of systemd, so that a model is served from the start on."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import sys
from pathlib import Path

import click

from appliance import paths
from appliance.cli import machine
from appliance.cli.late import LateGroup
from appliance.cli.output import Output
from appliance.cli.prepare import locate
from appliance.cli.unit import machine_unit, user_unit
from appliance.errors import (
    ApplianceError,
    HardwareError,
    NotAuthorisedError,
    NotFoundError,
    UsageError,
)
from appliance.hub.local import is_folder_name
from appliance.runtime.config import ServeConfig

_SYSTEM = click.option(
    "--system", is_flag=True, help="A unit of the whole machine, with a user of its own (root)."
)


@click.group(cls=LateGroup)
def service() -> None:
    """Serve from the start of the machine on, by systemd."""


@service.command()
@click.argument("model", required=False)
@click.option("--name", default="default", help="Name of the run, and of the unit.")
@click.option("--profile", help="Settings to use; chosen by the machine when left out.")
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option(
    "--drain",
    type=click.IntRange(0),
    default=int(ServeConfig().drain_s),
    help="Seconds to finish requests in.",
)
@_SYSTEM
@click.option("--print", "only_print", is_flag=True, help="Print the unit; write nothing.")
@click.pass_context
def install(
    ctx: click.Context,
    /,
    model: str | None,
    name: str,
    profile: str | None,
    host: str | None,
    port: int | None,
    settings: tuple[str, ...],
    drain: int,
    system: bool,
    only_print: bool,
) -> None:
    """Write a unit that serves MODEL, and start it."""
    out = ctx.find_object(Output) or Output()
    if model and is_folder_name(model):
        model = str(Path(model).expanduser().absolute())  # the unit runs in another folder
    words = ["up", *([model] if model else []), "--name", name]
    for option, value in (("--profile", profile), ("--host", host), ("--port", port)):
        words += [option, str(value)] if value is not None else []
    for setting in settings:
        words += ["--set", setting]
    if drain != ServeConfig().drain_s:
        words += ["--set", f"serve.drain_s={drain}"]
    path = unit_path(name, system)
    if system:
        reads = [Path(sys.prefix), *([Path(model)] if model and is_folder_name(model) else [])]
        text = machine_unit(words, drain, name, reads, port)
    else:
        text = user_unit(words, drain, name)
    if only_print:
        out.result(text, {"schema": "appliance.service/1", "path": None, "unit": text})
        return
    if system and not machine.is_root():
        out.result(
            f"{text}\n{machine.by_hand(path, sys.argv[1:])}",
            {"schema": "appliance.service/1", "path": None, "unit": text},
        )
        out.note("Nothing was installed: a unit of the machine takes root.")
        ctx.exit(NotAuthorisedError.exit_code)
    systemctl = _systemctl()
    named = "" if name == "default" else f" --name {name}"
    if system:
        machine.prepare(model)
        _put([systemctl], path, text)
        out.result(
            f"{path.name} is installed and starting: appliance service status --system{named}\n"
            f"Its user asks it: {machine.AS_USER} {machine.shown()} status"
            f"{'' if name == 'default' else f' {name}'}",
            {"schema": "appliance.service/1", "path": str(path), "unit": text},
        )
        return
    if model and is_folder_name(model):
        check_reach(Path(model))
    check_reach(Path(locate(model, None).path))
    check_writable(name)
    _put([systemctl, "--user"], path, text)
    out.note("To go on after you log out: loginctl enable-linger")
    out.result(
        f"{path.name} is installed and starting: appliance service status{named}",
        {"schema": "appliance.service/1", "path": str(path), "unit": text},
    )


def _put(systemctl: list[str], path: Path, text: str) -> None:
    """Writes the unit and has it started; a start takes as long as loading does."""
    before = path.read_text() if path.is_file() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    try:
        machine.call([*systemctl, "daemon-reload"])
    except HardwareError:  # nobody will ever read it
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
        raise
    machine.call([*systemctl, "enable", path.name])
    machine.call([*systemctl, "start", "--no-block", path.name])


@service.command()
@click.option("--name", default="default", help="Name of the run, and of the unit.")
@_SYSTEM
@click.pass_obj
def uninstall(out: Output, /, name: str, system: bool) -> None:
    """Stop the unit and remove it. What a service of the machine has kept stays."""
    path = _installed(name, system)
    systemctl = [_systemctl(), *([] if system else ["--user"])]
    try:
        machine.call([*systemctl, "disable", "--now", path.name])
        path.unlink()
        machine.call([*systemctl, "daemon-reload"])
    except HardwareError as e:
        # without a systemd nothing runs by it, and the next one reads what is there
        out.note(f"{e.message}; its file is removed all the same")
        path.unlink(missing_ok=True)
    data = {"schema": "appliance.service/1", "path": str(path), "unit": None}
    out.result(f"{path.name} is stopped and removed", data)


@service.command()
@click.option("--name", default="default", help="Name of the run, and of the unit.")
@_SYSTEM
@click.pass_context
def status(ctx: click.Context, /, name: str, system: bool) -> None:
    """What systemd says of the unit. Exit code 0 when it is active, else 3."""
    out = ctx.find_object(Output) or Output()
    path = _installed(name, system)
    whose = [] if system else ["--user"]
    asked = ["ActiveState", "SubState", "StatusText", "MainPID", "NRestarts"]
    said = machine.call(
        [_systemctl(), *whose, "show", path.name, *(f"--property={p}" for p in asked)]
    )
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    active = found.get("ActiveState", "unknown")
    text = (
        f"{path.name}: {active} ({found.get('SubState', '?')})  {found.get('StatusText', '')}\n"
        f"  pid {found.get('MainPID', '?')}   restarts {found.get('NRestarts', '?')}   {path}\n"
        f"  {' '.join(['journalctl', *whose])} -u {path.name} has its log"
    )
    data = {
        "active": active,
        "sub": found.get("SubState"),
        "says": found.get("StatusText") or None,
        "path": str(path),
    }
    out.result(text, {"schema": "appliance.service-status/1", **data})
    if active != "active":
        ctx.exit(3)


def unit_path(name: str, system: bool = False) -> Path:
    if not name or "/" in name or name.startswith("."):
        raise UsageError(f"'{name}' cannot be the name of a run.", "Use letters and digits.")
    unit = "appliance.service" if name == "default" else f"appliance-{name}.service"
    if system:
        return machine.ROOT / "etc/systemd/system" / unit
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "systemd" / "user" / unit


def check_reach(folder: Path) -> None:
    """The unit runs as this user: what cannot be read now, it never will. ApplianceError names the
    first such path and its cure. Nothing is said of a folder that is not there."""
    folder = folder.absolute()
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            return
        if not os.access(path, os.X_OK):
            raise _closed(path, "entered", "x", path)
    for path in (folder, *sorted(folder.rglob("*"))):
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            # a hub's snapshot is links into a folder beside it: the cure is for both
            whole = Path(os.path.commonpath([folder.resolve(), path.resolve()]))
            raise _closed(path, "read", "rX", whole)


def check_writable(name: str) -> None:
    """As check_reach, of where a run keeps its log, its batches and its kernels."""
    for path in (paths.supervisor_log(name).parent, paths.cache_dir(), paths.batches_dir(name)):
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise _closed(there, "written to", "rwX", there)


def _closed(path: Path, what: str, needed: str, target: Path) -> ApplianceError:
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        user = str(os.getuid())
    words = [
        "setfacl",
        *(["-R"] if needed == "rX" else []),
        "-m",
        f"u:{user}:{needed}",
        str(target),
    ]
    return ApplianceError(
        f"{path} cannot be {what} by {user}, as whom the unit would run.",
        f"{shlex.join(words)}     as the owner of {target}",
        code="APL-DSK-003",
    )


def _installed(name: str, system: bool) -> Path:
    path = unit_path(name, system)
    if not path.is_file():
        raise NotFoundError(
            f"no unit is installed for the run '{name}'.",
            f"appliance service install{' --system' if system else ''} --name {name}",
            code="APL-NOT-017",
        )
    return path


def _systemctl() -> str:
    found = shutil.which("systemctl")
    if found is None:
        raise HardwareError(
            "this machine has no systemd.",
            "`appliance service install --print` shows the unit; `appliance up -d` runs without.",
            code="APL-HW-004",
        )
    return found
