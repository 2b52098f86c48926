"""`appliance pull` as its user runs it, killed in every way; the next one goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakehub import FakeHub, Repo, tiny_model
from interrupted_pull import PHASES
from pulling import Puller

from appliance.hub.store import find_model

SHARD = "model-00001-of-00001.safetensors"
SIZE = 3_000_000


@pytest.fixture(params=["hf", "modelscope"])
def big(hub: FakeHub, env: dict[str, str], request: pytest.FixtureRequest) -> Puller:
    repo = Repo(tiny_model(shards=1, floats=SIZE // 4))
    hub.hf["org/tiny"] = hub.modelscope["org/tiny"] = repo
    return Puller(hub, request.param, repo.files)


def start(puller: Puller, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "appliance", "pull", "org/tiny", "--source", puller.source, *more],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        threading.Event().wait(0.01)


def part_size(puller: Puller) -> int:
    plan = puller.plan()
    shard = next(t.file for t in plan.takes if t.file.path == SHARD)
    return plan.layout.part(shard).stat().st_size


def grown(hub: FakeHub, by: int) -> Callable[[], bool]:
    goal = hub.body_bytes + by
    return lambda: hub.body_bytes > goal


def test_killed_twice_it_resumes_where_it_was(big: Puller) -> None:
    big.hub.fault(SHARD, rate=2_000_000, times=2)
    kept = []
    for _ in range(2):
        child = start(big)
        wait_for(grown(big.hub, 700_000))
        child.kill()
        child.communicate()
        kept.append(part_size(big))
        assert not find_missing()
    last = start(big, "--json")
    stdout, stderr = last.communicate(timeout=60)
    assert last.returncode == 0, stderr
    ranges = [s.range for s in big.hub.bodies(SHARD)]
    assert ranges == ["", f"bytes={kept[0]}-", f"bytes={kept[1]}-"]
    assert 0 < kept[0] < kept[1] < SIZE
    answer = json.loads(stdout)
    assert answer["schema"] == "appliance.pull/1" and answer["verified_files"] >= 1
    assert answer["downloaded_bytes"] <= SIZE + 200 - kept[1]
    big.assert_complete(Path(answer["path"]))


def find_missing() -> bool:
    """Whether half a model would be served."""
    try:
        return find_model("org/tiny").complete
    except Exception:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_soon_and_keeps_the_bytes(big: Puller, number: signal.Signals) -> None:
    big.hub.fault(SHARD, rate=150_000)
    child = start(big)
    wait_for(grown(big.hub, 100_000))
    sent = time.monotonic()
    child.send_signal(number)
    _, stderr = child.communicate(timeout=20)
    assert time.monotonic() - sent < 8.0, "it waited for the file, which takes 20 s"
    if number == signal.SIGINT:
        assert child.returncode == 130
        assert "Stopped at 0." in stderr and "Run the same command to continue" in stderr
        assert "Traceback" not in stderr
    else:
        assert child.returncode in (-number, 128 + number)
    assert part_size(big) > 50_000
    pulled = big.pull()
    big.assert_complete(pulled.folder)
    assert big.hub.bodies(SHARD)[-1].range.startswith("bytes=")


def test_ctrl_c_does_not_wait_for_a_silent_hub(big: Puller) -> None:
    big.hub.fault(SHARD, stall_s=60)
    child = start(big)
    wait_for(big.hub.body_started.is_set)
    wait_for(grown(big.hub, -1))
    threading.Event().wait(0.3)
    sent = time.monotonic()
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=20)
    assert child.returncode == 130 and time.monotonic() - sent < 8.0


@pytest.mark.parametrize("phase", list(PHASES))
def test_an_interrupt_that_python_loses_is_heard_in_any_phase(big: Puller, phase: str) -> None:
    """It comes where exceptions are dropped; what follows is a hub that has fallen silent."""
    big.hub.fault(SHARD, stall_s=60)
    script = str(Path(__file__).parent / "interrupted_pull.py")
    child = subprocess.Popen(
        [sys.executable, script, phase, "pull", "org/tiny", "--source", big.source],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stdout, stderr = child.communicate(timeout=20)
    assert (child.returncode, stdout) == (130, ""), stderr
    assert "interrupted in this phase" in stderr and "stopped by Ctrl-C" in stderr
    assert "Exception ignored" not in stderr and "Traceback" not in stderr
    if phase in ("download", "verify"):
        assert "Run the same command to continue." in stderr


def test_the_second_goes_on_when_the_first_is_killed(big: Puller) -> None:
    big.hub.fault(SHARD, rate=400_000)
    first = start(big)
    wait_for(grown(big.hub, 500_000))
    second = start(big, "--progress", "json")
    assert second.stderr is not None
    for line in second.stderr:
        if '"waiting": true' in line:
            break
    first.kill()
    first.communicate()
    stdout, stderr = second.communicate(timeout=60)
    assert second.returncode == 0, stderr
    assert stdout.startswith("Pulled") and len(big.hub.bodies(SHARD)) == 2
    big.assert_complete(find_model("org/tiny").folder)


def test_progress_events(big: Puller) -> None:
    child = start(big, "--progress", "json", "--json")
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 0, stderr
    events = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    assert events[-1]["done_bytes"] == events[-1]["total_bytes"]
    assert all(e["schema"] == "appliance.progress/1" for e in events)
    assert len(stdout.splitlines()) == 1
