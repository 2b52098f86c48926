"""The supervisor as a process: killed, told to stop, told twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supervisor_stage import alive

from appliance import paths
from appliance.client import Client
from appliance.errors import NotRunningError
from appliance.status import RunStatus
from appliance.supervisor.claim import RunLock

DRIVE = Path(__file__).with_name("drive.py")


@contextmanager
def driven(**engine: object) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    run = paths.run_dir("driven")
    process = subprocess.Popen([sys.executable, str(DRIVE), str(run), json.dumps(engine)])
    try:
        yield process, Client(paths.control_socket(run))
    finally:
        process.kill()
        process.wait()


def until(client: Client, state: str, phase: str | None = None) -> RunStatus:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            status = client.status()
            if status.state == state and (phase is None or status.phase == phase):
                return status
        except NotRunningError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"never {state}")


def gone(pids: list[int], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.01)
    return False


def test_killed_supervisor_leaves_no_process() -> None:
    with driven() as (process, client):
        status = until(client, "ready")
        children = [p.pid for p in status.processes[1:]]
        assert len(children) == 3 and all(alive(pid) for pid in children)
        process.kill()
        assert gone(children, 2.0)
        RunLock.take(paths.run_dir("driven")).release()


def test_sigterm_drains_and_leaves_with_zero() -> None:
    with driven() as (process, client):
        children = [p.pid for p in until(client, "ready").processes[1:]]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not any(alive(pid) for pid in children)
        assert not paths.control_socket(paths.run_dir("driven")).exists()


def test_sigint_while_loading_stops_soon() -> None:
    with driven(hang_in_phase=True, ignore_term=True) as (process, client):
        children = [p.pid for p in until(client, "starting", "load").processes[1:]]
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 3
        assert not any(alive(pid) for pid in children)


def test_second_signal_waits_for_nobody() -> None:
    with driven(ignore_term=True) as (process, client):
        status = until(client, "ready")
        frontend = next(p.pid for p in status.processes if p.role == "frontend")
        os.kill(frontend, signal.SIGSTOP)  # it will not drain
        process.send_signal(signal.SIGTERM)
        until(client, "draining")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not alive(frontend)
