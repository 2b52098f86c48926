"""appliance service: a systemd unit of the user, so that a model is served from the start on."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click

from appliance import paths
from appliance.cli.output import Output
from appliance.cli.prepare import locate
from appliance.errors import ApplianceError, HardwareError, NotFoundError, UsageError
from appliance.hub.local import is_folder_name
from appliance.runtime.config import ServeConfig

_KEPT = (
    "HF_HOME", "HF_HUB_CACHE", "MODELSCOPE_CACHE", "CUDA_VISIBLE_DEVICES",
    "APPLIANCE_CONFIG_DIR", "APPLIANCE_STATE_DIR", "APPLIANCE_CACHE_DIR",
)  # fmt: skip
"""Variables that decide where things are, kept from the shell that installs; no secrets."""


@click.group()
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
@click.option("--print", "only_print", is_flag=True, help="Print the unit; write nothing.")
@click.pass_obj
def install(
    out: Output,
    /,
    model: str | None,
    name: str,
    profile: str | None,
    host: str | None,
    port: int | None,
    settings: tuple[str, ...],
    drain: int,
    only_print: bool,
) -> None:
    """Write a unit that serves MODEL, and start it."""
    if model and is_folder_name(model):
        model = str(Path(model).expanduser().absolute())  # the unit runs in another folder
    words = ["up", *([model] if model else []), "--name", name]
    for option, value in (("--profile", profile), ("--host", host), ("--port", port)):
        words += [option, str(value)] if value is not None else []
    for setting in settings:
        words += ["--set", setting]
    if drain != ServeConfig().drain_s:
        words += ["--set", f"serve.drain_s={drain}"]
    text = unit_text(words, drain, name)
    path = unit_path(name)
    if only_print:
        out.result(text, {"schema": "appliance.service/1", "path": None, "unit": text})
        return
    systemctl = _systemctl()
    if model and is_folder_name(model):
        check_reach(Path(model))
    check_reach(Path(locate(model, None).path))
    check_writable(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    _call([systemctl, "--user", "daemon-reload"])
    _call([systemctl, "--user", "enable", "--now", path.name])
    out.note("To go on after you log out: loginctl enable-linger")
    out.result(
        f"{path.name} is installed and starting: appliance service status",
        {"schema": "appliance.service/1", "path": str(path), "unit": text},
    )


@service.command()
@click.option("--name", default="default", help="Name of the run, and of the unit.")
@click.pass_obj
def uninstall(out: Output, /, name: str) -> None:
    """Stop the unit and remove it."""
    path = _installed(name)
    systemctl = _systemctl()
    _call([systemctl, "--user", "disable", "--now", path.name])
    path.unlink()
    _call([systemctl, "--user", "daemon-reload"])
    data = {"schema": "appliance.service/1", "path": str(path), "unit": None}
    out.result(f"{path.name} is stopped and removed", data)


@service.command()
@click.option("--name", default="default", help="Name of the run, and of the unit.")
@click.pass_context
def status(ctx: click.Context, /, name: str) -> None:
    """What systemd says of the unit. Exit code 0 when it is active, else 3."""
    out = ctx.find_object(Output) or Output()
    path = _installed(name)
    asked = ["ActiveState", "SubState", "StatusText", "MainPID", "NRestarts"]
    said = _call([_systemctl(), "--user", "show", path.name, *(f"--property={p}" for p in asked)])
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    active = found.get("ActiveState", "unknown")
    text = (
        f"{path.name}: {active} ({found.get('SubState', '?')})  {found.get('StatusText', '')}\n"
        f"  pid {found.get('MainPID', '?')}   restarts {found.get('NRestarts', '?')}   {path}\n"
        f"  journalctl --user -u {path.name} has its log"
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


def unit_path(name: str) -> Path:
    if not name or "/" in name or name.startswith("."):
        raise UsageError(f"'{name}' cannot be the name of a run.", "Use letters and digits.")
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    unit = "appliance.service" if name == "default" else f"appliance-{name}.service"
    return Path(base).expanduser() / "systemd" / "user" / unit


def unit_text(words: list[str], drain_s: int, name: str) -> str:
    """A user unit: told when it is ready, watched, reloaded, drained before it is ended."""

    def command(*words: str) -> str:
        return " ".join(_quoted(word) for word in [sys.executable, "-m", "appliance", *words])

    kept = [f"Environment={_quoted(f'{k}={os.environ[k]}')}" for k in _KEPT if os.environ.get(k)]
    return "\n".join(
        [
            "[Unit]",
            "Description=appliance: a served language model",
            "After=network-online.target",
            "",
            "[Service]",
            "Type=notify",
            "NotifyAccess=main",
            "SyslogIdentifier=appliance",
            "UMask=0077",
            f"ExecStart={command(*words)}",
            f"ExecReload={command('reload', name)}",
            *kept,
            "# loading has no limit of its own; the supervisor ends what hangs",
            "TimeoutStartSec=infinity",
            "WatchdogSec=30",
            "Restart=on-failure",
            "RestartSec=5",
            "# SIGTERM drains; the processes behind the supervisor end with it",
            "KillMode=mixed",
            f"TimeoutStopSec={drain_s + 60}",
            "LimitNOFILE=65536",
            "LimitMEMLOCK=infinity",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        ]
    )


def _quoted(word: str) -> str:
    """A word of a unit's line: % and $ are systemd's own."""
    safe = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    return safe if shlex.quote(word) == word else '"' + safe.replace('"', '\\"') + '"'


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


def _installed(name: str) -> Path:
    path = unit_path(name)
    if not path.is_file():
        raise NotFoundError(
            f"no unit is installed for the run '{name}'.",
            f"appliance service install --name {name}",
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


def _call(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ApplianceError(
            f"`{shlex.join([Path(words[0]).name, *words[1:]])}` failed"
            + (f": {said[-1]}" if said else "."),
            "A user's systemd needs a login session: `loginctl enable-linger`, then log in again.",
        )
    return done.stdout
