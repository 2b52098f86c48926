"""service install: a unit that systemd understands, and a model that its user can reach."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import paths
from appliance.cli import service
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
