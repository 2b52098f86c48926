"""Conditions of machines that are not here, the hubs over a local server, and a bundle."""

from __future__ import annotations

import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from appliance import paths
from appliance.cli import bundle, conditions
from appliance.hardware import Gpu, HardwareSnapshot, Peers

Cli = Callable[..., Any]
HOST = HardwareSnapshot(8, 64 << 30, 60 << 30)


def machine(count: int, **changes: Any) -> HardwareSnapshot:
    gpus = tuple(
        Gpu(i, f"GPU-{i}", "NVIDIA H100", 80 << 30, 1 << 30, 90, **changes) for i in range(count)
    )
    return HardwareSnapshot(8, 64 << 30, 60 << 30, gpus, "580.95", "13.0")


def programs(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_compilers(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(own_home / "none"))
    monkeypatch.setattr(conditions, "_BUILT", ("no-such-package",))
    assert conditions.compilers(HOST).verdict == "ok"
    assert conditions.compilers(machine(1), str(own_home)).verdict == "block"
    check = conditions.compilers(machine(1), programs(own_home, "gcc"))
    assert check.verdict == "warn" and "install nvcc, ninja, g++" in check.fix
    monkeypatch.setattr(conditions, "_BUILT", ("click",))
    assert conditions.compilers(machine(1), str(own_home)).verdict == "ok"
    monkeypatch.setattr(conditions, "_BUILT", ())
    here = programs(own_home, "gcc", "nvcc", "ninja", "g++")
    assert conditions.compilers(machine(1), here).verdict == "ok"


@pytest.mark.parametrize(
    ("count", "peers", "verdict", "says"),
    [
        (1, Peers(), None, ""),
        (2, Peers((), 18), "ok", "18 NVLinks"),
        (2, Peers(), "warn", "no NVLink"),
        (4, Peers(((0, 2),), 4), "warn", "without a direct way: 0-2"),
    ],
)
def test_links(count: int, peers: Peers, verdict: str | None, says: str) -> None:
    check = conditions.links(machine(count), peers)
    assert (check.verdict if check else None) == verdict
    assert says in (check.found if check else "")


def test_shared_memory(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = own_home / "none"
    assert conditions.shared_memory(machine(2), missing).verdict == "block"
    assert conditions.shared_memory(HOST, missing).verdict == "warn"
    monkeypatch.setattr(conditions, "LEAST_SHM", 1 << 60)
    check = conditions.shared_memory(machine(2), own_home)
    assert check.verdict == "block" and "--shm-size" in check.fix
    assert conditions.shared_memory(machine(1), own_home).verdict == "warn"
    assert conditions.shared_memory(HOST, own_home).verdict == "ok"
    monkeypatch.setattr(conditions, "LEAST_SHM", 0)
    assert conditions.shared_memory(machine(2), own_home).verdict == "ok"


def test_throttling_and_locked_memory() -> None:
    assert conditions.throttling(machine(2)) is None
    slow = conditions.throttling(machine(1, throttle=("heat",), temperature_c=91))
    assert slow is not None and "GPU 0 (heat, 91 °C)" in slow.found
    assert conditions.memory_lock(HOST, 65536, -1) is None
    assert conditions.memory_lock(machine(1), -1, -1) is None
    tight = conditions.memory_lock(machine(1), 65536, -1)
    assert tight is not None and "64 KiB" in tight.found


def test_disk_speed(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "SLOW_DISK", 0.0)
    check = conditions.disk_speed(own_home / "not" / "there", 1 << 20)
    assert check.verdict == "ok" and str(own_home) in check.found
    monkeypatch.setattr(conditions, "SLOW_DISK", 1e18)
    assert conditions.disk_speed(own_home, 1 << 20).verdict == "warn"
    assert not [p for p in own_home.iterdir() if p.is_file()]
    assert conditions.disk_speed(Path("/proc/self"), 1 << 20).verdict == "warn"


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_network(cli: Cli, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    asked = [("a", f"{hub}/200"), ("b", f"{hub}/401"), ("c", f"{hub}/503"), ("d", "http://[")]
    assert [c.verdict for c in conditions.network(asked)] == ["ok", "ok", "warn", "warn"]
    monkeypatch.setenv("HF_ENDPOINT", f"{hub}/200")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:1")
    told = json.loads(cli("doctor", "--network", "--json").out)
    found = [c for c in told["checks"] if c["name"] == "network"]
    assert [c["verdict"] for c in found] == ["ok", "warn"]
    assert "answers 200" in found[0]["found"] and "HF_ENDPOINT" in found[1]["fix"]


SECRETS = (
    """\
hf_abcdefghijklmnop and sk-0123456789abcdef
Authorization: Bearer abc.def.ghi
ftp://user:hunter2@host/x
api_key = "letmein"
"hf_token": "hunter3"
plain = "stays"
"""
    + "c" * 64
)


def test_nothing_secret_is_told() -> None:
    text = bundle.redacted(SECRETS + f"\n{Path.home()}/x")
    for secret in ("abcdefghijklmnop", "0123456789abcdef", "abc.def", "hunter", "letmein", "cccc"):
        assert secret not in text
    assert 'plain = "stays"' in text and "@host/x" in text
    assert text.endswith("~/x")


def test_bundle(cli: Cli, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecrettoken")
    paths.config_dir().mkdir(parents=True)
    (paths.config_dir() / "config.toml").write_text("[serve]\nport = 9\n")
    (paths.config_dir() / "keys.json").write_text('{"keys": ["sealed"]}')
    log = paths.supervisor_log("default")
    log.parent.mkdir(parents=True)
    log.write_text("token=hf_verysecrettoken\nall is well\n")
    target = own_home / "b.tar.gz"
    assert cli("doctor", "--bundle", str(target), "--json").code in (0, 8)
    assert os.stat(target).st_mode & 0o777 == 0o600
    with tarfile.open(target) as tar:
        parts = {}
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            parts[member.name.partition("/")[2]] = file.read().decode()
    assert {"doctor.json", "version.json", "environment.json", "config/config-config.toml",
            "logs/default.log"} <= set(parts)  # fmt: skip
    everything = "".join(parts.values())
    assert "verysecret" not in everything and "sealed" not in everything
    assert "all is well" in parts["logs/default.log"]
    assert json.loads(parts["environment.json"])["HF_TOKEN"] == "[redacted]"
    assert cli("doctor", "--bundle", "/proc/none/x.tgz").code == 2
