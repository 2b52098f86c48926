"""One run, one supervisor; one port, one server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from appliance import paths
from appliance.errors import BusyError, UsageError
from appliance.runtime.config import ModelConfig, RuntimeConfig, ServeConfig, write_config
from appliance.supervisor.claim import RunLock, bind, held


def test_second_lock_is_refused_and_names_the_holder() -> None:
    run = paths.run_dir("default")
    lock = RunLock.take(run)
    with pytest.raises(BusyError, match=f"pid {os.getpid()}"):
        RunLock.take(run)
    assert held(run)
    lock.release()
    assert not held(run)
    RunLock.take(run).release()


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    run = paths.run_dir("default")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from appliance.supervisor.claim import RunLock\n"
        "RunLock.take(Path(sys.argv[1])); print('held', flush=True); time.sleep(1000)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    assert held(run)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    RunLock.take(run).release()


def test_only_one_of_many_at_once_gets_the_lock() -> None:
    run = paths.run_dir("default")
    code = (
        "import sys; from pathlib import Path; from appliance.supervisor.claim import RunLock\n"
        "from appliance.errors import BusyError\n"
        "try:\n RunLock.take(Path(sys.argv[1])); print('got', flush=True)\n"
        "except BusyError: print('busy', flush=True)\n"
        "sys.stdin.read()"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    words = [r.stdout.readline() for r in racers if r.stdout]
    for racer in racers:
        racer.communicate()
    assert sorted(words) == [b"busy\n"] * 3 + [b"got\n"]


def test_port_in_use_names_the_process_and_a_free_port() -> None:
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(BusyError) as caught:
        bind("127.0.0.1", port)
    assert time.monotonic() - began < 2
    assert f"127.0.0.1:{port} is used by pid {os.getpid()}" in caught.value.message
    assert "--port" in caught.value.hint
    first.close()


def test_port_of_a_run_of_ours_names_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPLIANCE_RUNTIME_DIR", str(tmp_path))
    with closing(bind("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        config = RuntimeConfig(
            run="night",
            dir=str(tmp_path / "night"),
            model=ModelConfig(path="/m", id="m"),
            serve=ServeConfig(port=port),
        )
        lock = RunLock.take(paths.run_dir("night"))
        write_config(config, paths.config_file(paths.run_dir("night")))
        with pytest.raises(BusyError, match="is used by the run 'night'") as caught:
            bind("127.0.0.1", port)
        assert "appliance down night" in caught.value.hint and "kill" not in caught.value.hint
        lock.release()
        with pytest.raises(BusyError, match=f"is used by pid {os.getpid()}"):
            bind("127.0.0.1", port)


def test_port_can_be_taken_again_at_once() -> None:
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port))
    first.setblocking(True)
    served, _ = first.accept()
    served.close()
    client.close()
    first.close()
    bind("127.0.0.1", port).close()


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UsageError):
        bind("203.0.113.7", 0)
