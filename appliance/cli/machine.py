"""What a service of the whole machine needs: its user, its folders, a model that it can reach."""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from appliance.cli.unit import USER, variables
from appliance.errors import ApplianceError, HardwareError
from appliance.paths import MACHINE

ROOT = Path("/")
AS_USER = f"sudo -u {USER} -H env"
_VENV = "/usr/local/lib/appliance"
_OWN = ("STATE", "CACHE", "LOGS")


def is_root() -> bool:
    return os.geteuid() == 0


def shown() -> str:
    """The appliance as that user would type it, with the unit's folder of models."""
    return f"HF_HOME={variables()['HF_HOME']} {shlex.quote(sys.executable)} -m appliance"


def steps() -> list[list[str]]:
    """Commands that make the user and its folders, where they are not there."""
    home = str(MACHINE["STATE"])
    made = []
    if not _is_user():
        options = ["--system", "--user-group", "--home-dir", home, "--shell", "/usr/sbin/nologin"]
        made.append(["useradd", *options, USER])
    own = [str(MACHINE[kind]) for kind in _OWN]
    made.append(["install", "-d", "-o", USER, "-g", USER, "-m", "0750", *own])
    # what the user's commands write there, such as keys, they can read
    made.append(["install", "-d", "-o", "root", "-g", USER, "-m", "2770", str(MACHINE["CONFIG"])])
    return made


def by_hand(path: Path, words: Sequence[str]) -> str:
    """What root would type, line by line: in one go, or step by step."""
    again = shlex.join([sys.executable, "-m", "appliance", *words])
    lines = ["# As root, in one go:", f"sudo {again}", "# Or step by step:"]
    lines += [f"sudo {shlex.join(step)}" for step in steps()]
    lines += [
        f"{again} --print | sudo tee {path}",
        "echo nvidia-uvm | sudo tee /etc/modules-load.d/appliance.conf     # with an NVIDIA GPU",
        "sudo systemctl daemon-reload",
        f"sudo systemctl enable --now {path.name}",
    ]
    return "\n".join(lines)


def prepare(model: str | None) -> None:
    """Makes the user and its folders, and tries the model as that user. ApplianceError names what
    it cannot reach, in the words of what it tried."""
    for step in steps():
        call(step)
    if (ROOT / "dev/nvidiactl").exists():
        # a unit may use only devices that are there when it starts
        loaded = ROOT / "etc/modules-load.d/appliance.conf"
        loaded.parent.mkdir(parents=True, exist_ok=True)
        loaded.write_text("nvidia-uvm\n")
    words = ["show", model] if model else ["version"]
    try:
        done = as_user([sys.executable, "-m", "appliance", *words, "--quiet"], variables())
    except PermissionError as e:
        raise ApplianceError(
            f"{sys.executable} cannot be run by {USER}, as whom the unit would run.",
            f"sudo python3 -m venv {_VENV}\n"
            f"sudo {_VENV}/bin/pip install appliance\n"
            f"sudo {_VENV}/bin/appliance service install --system …",
            code="APL-DSK-003",
        ) from e
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise ApplianceError(
            f"as {USER}, as whom the unit would run, `appliance {' '.join(words)}` says:\n{said}",
            f"{AS_USER} {shown()} pull {model}" if model and done.returncode == 4 else
            "setfacl -m u:appliance:rX FOLDER lets it in, or move it out of a home folder",
            code="APL-DSK-003",
        )  # fmt: skip


def as_user(
    words: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """PermissionError when the program cannot be run as that user."""
    entry = pwd.getpwnam(USER)
    kept = {k: os.environ[k] for k in ("PATH", "LANG") if k in os.environ}
    return subprocess.run(
        words,
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=[],
        cwd="/",
        env=kept | {"HOME": entry.pw_dir} | dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )


def call(words: Sequence[str]) -> str:
    """What a command said. ApplianceError with its last line when it failed or is not there."""
    shown = shlex.join([Path(words[0]).name, *words[1:]])
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as e:
        raise ApplianceError(f"`{shown}` cannot be run: {e.strerror}.") from e
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        text = f"`{shown}` failed" + (f": {said[-1]}" if said else ".")
        if said and "Failed to connect to bus" in said[-1]:
            whose = (
                "A user's systemd needs a login session: `loginctl enable-linger`, log in again."
            )
            none = "The machine was not started by it: `appliance up -d` runs without a service."
            hint = whose if "--user" in words else none
            raise HardwareError(text, hint, code="APL-HW-007")
        raise ApplianceError(text)
    return done.stdout


def _is_user() -> bool:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True
