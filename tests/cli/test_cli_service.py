"""service install: a unit that systemd understands, and a model that its user can reach."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import paths
from appliance.cli import machine, service, unit
from appliance.errors import ApplianceError

Cli = Callable[..., Any]


@pytest.fixture
def snapshot(own_home: Path) -> Path:
    """A model as a hub's cache holds it: links into a folder beside it."""
    repo = own_home / "hf/hub/models--org--tiny"
    folder = repo / "snapshots/abc"
    folder.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs/123").write_text("{}")
    (folder / "config.json").symlink_to("../../blobs/123")
    return folder


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """close(path): to everybody, the user who runs the tests included."""
    shut: set[Path] = set()
    real = os.access

    def access(path: Any, mode: int) -> bool:
        return Path(path).resolve() not in shut and real(path, mode)

    monkeypatch.setattr(os, "access", access)
    return lambda path: shut.add(path.resolve())


def refusal(folder: Path) -> ApplianceError:
    with pytest.raises(ApplianceError) as refused:
        service.check_reach(folder)
        service.check_writable("default")
    assert refused.value.code == "APL-DSK-003"
    return refused.value


def test_a_model_that_can_be_read(snapshot: Path) -> None:
    service.check_reach(snapshot)
    service.check_writable("default")


def test_each_path_is_tried(snapshot: Path, closed: Callable[[Path], None]) -> None:
    repo = snapshot.parents[1]
    closed(snapshot / "config.json")
    error = refusal(snapshot)
    assert f"{snapshot}/config.json cannot be read by " in error.message
    assert error.hint.startswith("setfacl -R -m u:") and f":rX {repo} " in error.hint
    closed(repo.parent)
    error = refusal(snapshot)
    assert f"{repo.parent} cannot be entered by " in error.message and "-R" not in error.hint


def test_what_a_run_writes_is_tried(snapshot: Path, closed: Callable[[Path], None]) -> None:
    paths.state_dir().mkdir(parents=True)
    closed(paths.state_dir())
    assert f"{paths.state_dir()} cannot be written to by " in refusal(snapshot).message


def test_nothing_is_installed_for_a_model_that_is_not_here(
    cli: Cli, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = own_home / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text("#!/bin/sh\n")
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own_home / "xdg"))
    said = cli("service", "install", "org/absent")
    assert said.code == 4 and "appliance pull org/absent" in said.err
    assert not (own_home / "xdg").exists()


def test_where_systemd_does_not_answer_nothing_is_left(
    cli: Cli, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over ssh without a session, or where the machine was not started by it."""
    programs = own_home / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text(
        "#!/bin/sh\necho 'Failed to connect to bus: No medium found' >&2\nexit 1\n"
    )
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own_home / "xdg"))
    said = cli("service", "install")
    assert said.code == 8 and "APL-HW-007" in said.err and "enable-linger" in said.err
    path = own_home / "xdg/systemd/user/appliance.service"
    assert not path.exists()
    path.write_text("of before")
    assert cli("service", "install").code == 8 and path.read_text() == "of before"
    assert cli("service", "status").code == 8
    gone = cli("service", "uninstall")
    assert gone.code == 0 and not path.exists() and "removed all the same" in gone.err
    assert cli("service", "uninstall").code == 4


def test_the_unit_names_a_folder_by_its_whole_path(
    cli: Cli, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_home / "model").mkdir()
    monkeypatch.chdir(own_home)
    assert (
        f"up {own_home.resolve()}/model --name"
        in cli("service", "install", "./model", "--print").out
    )


def test_the_time_to_drain_is_told_to_both(cli: Cli) -> None:
    said = cli("service", "install", "--print", "--drain", "120").out
    assert "TimeoutStopSec=180" in said and "--set serve.drain_s=120" in said
    assert "serve.drain_s" not in cli("service", "install", "--print").out


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(
    cli: Cli, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own_home))
    monkeypatch.setenv("HF_HOME", '/data/100% "mine" $x')
    unit = own_home / "appliance.service"
    unit.write_text(cli("service", "install", "org/m", "--print", "--port", "9").out)
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(unit)], capture_output=True, text=True
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if str(unit.name) in line]
    assert done.returncode == 0 and not said


RECORDS = """#!/bin/sh
echo "${0##*/} $*" >> "$CALLS"
case "$*" in *show*) printf 'ActiveState=active\\nSubState=running\\nMainPID=7\\n';; esac
"""


class Machine:
    """One whose commands are written down instead of done, and whose root lies in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[list[str]] = []
        self.answer = subprocess.CompletedProcess([], 0, "", "")

    def as_user(self, words: Any, environment: Any) -> subprocess.CompletedProcess[str]:
        self.asked.append(list(words))
        return self.answer

    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def whole(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(own_home)
    programs = own_home / "bin"
    programs.mkdir()
    for name in ("systemctl", "useradd", "install"):
        (programs / name).write_text(RECORDS)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(own_home / "calls"))
    monkeypatch.delenv("HF_HOME")
    monkeypatch.delenv("MODELSCOPE_CACHE")
    monkeypatch.setattr(machine, "ROOT", own_home)
    monkeypatch.setattr(machine, "is_root", lambda: True)
    monkeypatch.setattr(machine, "_is_user", lambda: False)
    monkeypatch.setattr(machine, "as_user", found.as_user)
    return found


def test_a_service_of_the_machine_lives(cli: Cli, whole: Machine) -> None:
    (whole.root / "dev").mkdir()
    (whole.root / "dev/nvidiactl").touch()
    assert cli("service", "status", "--system").code == 4
    said = cli("service", "install", "org/m", "--system", "--port", "9009")
    assert said.code == 0 and "sudo -u appliance -H env HF_HOME=/var/lib/appliance/hf" in said.out
    unit = whole.root / "etc/systemd/system/appliance.service"
    for line in ("User=appliance", "StateDirectory=appliance", "CacheDirectory=appliance",
                 "RuntimeDirectory=appliance", "LogsDirectory=appliance", "Type=notify",
                 "WatchdogSec=30", "DeviceAllow=char-nvidia* rw", "CapabilityBoundingSet=",
                 "Environment=HF_HOME=/var/lib/appliance/hf", "WantedBy=multi-user.target",
                 f"ExecReload={sys.executable} -m appliance reload default"):  # fmt: skip
        assert line in unit.read_text().splitlines(), line
    assert "PrivateDevices=" not in unit.read_text()
    assert (whole.root / "etc/modules-load.d/appliance.conf").read_text() == "nvidia-uvm\n"
    assert whole.asked[0][1:5] == ["-m", "appliance", "show", "org/m"]
    done = whole.calls()
    assert done[0].startswith("useradd --system") and done[0].endswith(" appliance")
    assert done[1].endswith("/var/lib/appliance /var/cache/appliance /var/log/appliance")
    assert done[2] == "install -d -o root -g appliance -m 2770 /etc/appliance"
    assert done[3:] == [
        "systemctl daemon-reload",
        "systemctl enable appliance.service",
        "systemctl start --no-block appliance.service",
    ]
    said = cli("service", "status", "--system")
    assert said.code == 0 and "  journalctl -u appliance.service has" in said.out
    assert cli("service", "uninstall", "--system").code == 0 and not unit.exists()
    assert "systemctl disable --now appliance.service" in whole.calls()
    assert not any("--user" in call for call in whole.calls()[3:])


def test_what_comes_next_names_the_unit(cli: Cli, whole: Machine) -> None:
    said = cli("service", "install", "org/m", "--system", "--name", "second").out
    assert "appliance service status --system --name second\n" in said
    assert said.endswith(" -m appliance status second\n")


def test_without_root_the_unit_and_the_commands_are_printed(
    cli: Cli, whole: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "is_root", lambda: False)
    monkeypatch.setattr(sys, "argv", ["appliance", "service", "install", "--system", "org/m"])
    said = cli("service", "install", "--system", "org/m")
    assert said.code == 5 and "Nothing was installed" in said.err
    again = f"{sys.executable} -m appliance service install --system org/m"
    lines = said.out.splitlines()
    assert "[Service]" in lines and f"sudo {again}" in lines
    assert any(line.startswith("sudo useradd --system") for line in lines)
    target = whole.root / "etc/systemd/system/appliance.service"
    assert f"{again} --print | sudo tee {target}" in lines
    assert lines[-1] == "sudo systemctl enable --now appliance.service"
    assert not whole.calls() and not (whole.root / "etc").exists()


def test_the_machines_user_must_reach_the_model(
    cli: Cli, whole: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole.answer = subprocess.CompletedProcess([], 4, "", "error[APL-NOT-003]: not here")
    said = cli("service", "install", "--system", "org/m")
    assert said.code == 1 and "not here" in said.err
    assert "sudo -u appliance -H env HF_HOME=/var/lib/appliance/hf" in said.err
    assert "pull org/m" in said.err
    whole.answer = subprocess.CompletedProcess([], 9, "", "cannot be read")
    assert "setfacl -m u:appliance" in cli("service", "install", "--system", "org/m").err

    def refused(*_: Any) -> Any:
        raise PermissionError

    monkeypatch.setattr(machine, "as_user", refused)
    said = cli("service", "install", "--system")
    assert said.code == 1 and "venv /usr/local/lib/appliance" in said.err
    assert not (whole.root / "etc").exists()


def test_homes_and_low_ports_are_let_in_where_they_are_needed() -> None:
    there = unit.machine_unit(["up"], 30, "a", [Path("/home/x/venv")], 80)
    assert "ProtectHome=read-only" in there
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in there
    elsewhere = unit.machine_unit(["up"], 30, "a", [Path("/usr")], 8000)
    assert "ProtectHome=yes" in elsewhere and "AmbientCapabilities" not in elsewhere


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs programs as others")
def test_programs_run_as_that_user(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(machine, "USER", "nobody")
    done = machine.as_user(["/bin/sh", "-c", "id -u; echo $HF_HOME; pwd"], {"HF_HOME": "/x"})
    assert done.stdout.split() == [str(nobody.pw_uid), "/x", "/"]
    with pytest.raises(ApplianceError, match="cannot be run"):
        machine.call(["/no/such/program"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("port", ["80", "8000"])
def test_systemd_understands_the_unit_of_the_machine(cli: Cli, own_home: Path, port: str) -> None:
    file = own_home / "appliance.service"
    words = ["service", "install", "org/m", "--system", "--print", "--port", port]
    file.write_text(cli(*words).out)
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True)
    said = [line for line in (done.stdout + done.stderr).splitlines() if file.name in line]
    assert done.returncode == 0 and not said
