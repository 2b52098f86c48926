"""Where things lie, and who may enter."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from appliance import paths
from appliance.errors import ApplianceError, UsageError


def test_folders_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, folder in {
        "CONFIG": paths.config_dir,
        "STATE": paths.state_dir,
        "CACHE": paths.cache_dir,
        "RUNTIME": paths.runtime_dir,
    }.items():
        monkeypatch.setenv(f"APPLIANCE_{name}_DIR", str(tmp_path / name))
        assert folder() == tmp_path / name


def test_folders_that_systemd_made_are_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        "CONFIGURATION": paths.config_dir,
        "STATE": paths.state_dir,
        "CACHE": paths.cache_dir,
        "LOGS": paths.logs_dir,
        "RUNTIME": paths.runtime_dir,
    }
    for name in ("CONFIG", "STATE", "CACHE", "LOGS", "RUNTIME"):
        monkeypatch.delenv(f"APPLIANCE_{name}_DIR", raising=False)
    for name, folder in made.items():
        monkeypatch.setenv(f"{name}_DIRECTORY", "/var/lib/another")
        assert folder() != Path("/var/lib/another")
        monkeypatch.setenv(f"{name}_DIRECTORY", f"/{name}/appliance:/{name}/second")
        assert folder() == Path(f"/{name}/appliance")
    assert paths.supervisor_log("one") == Path("/LOGS/appliance/one.log")
    assert paths.request_log("one", 0).parent == Path("/LOGS/appliance")
    monkeypatch.setenv("APPLIANCE_STATE_DIR", "/mine")
    assert paths.supervisor_log("one") == Path("/mine/logs/one.log")


def test_the_user_of_the_machines_service_finds_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONFIG", "STATE", "CACHE", "LOGS", "RUNTIME"):
        monkeypatch.delenv(f"APPLIANCE_{name}_DIR", raising=False)
    monkeypatch.setitem(paths.MACHINE, "STATE", tmp_path)
    monkeypatch.setattr("os.getuid", lambda: tmp_path.stat().st_uid + 1)
    assert paths.runtime_dir() != Path("/run/appliance")
    if os.geteuid() == 0:  # root has runs of its own
        os.chown(tmp_path, 4321, -1)
    uid = tmp_path.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: uid)
    assert paths.runtime_dir() == Path("/run/appliance")
    assert paths.state_dir() == tmp_path and paths.config_dir() == Path("/etc/appliance")
    assert paths.supervisor_log("one") == Path("/var/log/appliance/one.log")
    monkeypatch.setattr("os.getuid", lambda: 0)
    assert paths.runtime_dir() != Path("/run/appliance")


def test_another_users_service_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(paths.MACHINE, "RUNTIME", tmp_path / "none")
    assert not paths.another_serves_machine()
    monkeypatch.setitem(paths.MACHINE, "RUNTIME", tmp_path)
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner)
    assert not paths.another_serves_machine()
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    assert paths.another_serves_machine()


def test_sockets_lie_in_the_users_runtime_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APPLIANCE_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert paths.runtime_dir() == tmp_path / "appliance"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    assert paths.runtime_dir().name.startswith("appliance-")


def test_run_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_RUNTIME_DIR", str(tmp_path / "r"))
    run = paths.run_dir("one")
    assert run == tmp_path / "r" / "one"
    assert stat.S_IMODE(run.stat().st_mode) == stat.S_IMODE(run.parent.stat().st_mode) == 0o700
    run.chmod(0o755)
    assert stat.S_IMODE(paths.run_dir("one").stat().st_mode) == 0o700


def test_a_link_is_no_private_folder(tmp_path: Path) -> None:
    """Somebody else could have put it there, pointing to a folder of theirs."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ApplianceError, match="not a folder owned"):
        paths.private_dir(tmp_path / "link")


def test_a_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = tmp_path.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: uid + 1)
    with pytest.raises(ApplianceError, match="not a folder owned"):
        paths.private_dir(tmp_path)


def test_folder_too_long_for_sockets_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPLIANCE_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(UsageError, match="bytes too long") as refused:
        paths.run_dir("default")
    assert "APPLIANCE_RUNTIME_DIR" in refused.value.hint
    assert not list(tmp_path.iterdir())


def test_names_in_a_run_are_distinct(tmp_path: Path) -> None:
    names = [
        paths.lock_file(tmp_path), paths.config_file(tmp_path), paths.plan_file(tmp_path),
        paths.control_socket(tmp_path), paths.run_state(tmp_path),
        *(paths.engine_socket(tmp_path, i) for i in range(2)),
        *(paths.ring_file(tmp_path, i) for i in range(2)),
        *(paths.rendezvous_file(tmp_path, i) for i in range(2)),
        *(paths.frontend_snapshot(tmp_path, i) for i in range(2)),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert {name.parent for name in names} == {tmp_path}


def test_profiles_that_ship_are_found() -> None:
    assert (paths.shipped_profiles() / "cpu.toml").is_file()
