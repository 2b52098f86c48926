"""A disk that does not answer: lines are lost and counted, the run is not held up."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from pathlib import Path

import msgspec
import pytest
from supervisor_stage import pids, staged

from appliance import paths
from appliance.supervisor import disks, logs
from appliance.supervisor.alerts import Seen, findings
from appliance.supervisor.disks import Disks
from appliance.supervisor.log_writer import LogWriter
from appliance.supervisor.logs import Filter, read_file


def read_from(fifo: Path) -> tuple[threading.Thread, list[str]]:
    """Begins to read, which is what a disk does that answers again."""
    got: list[str] = []

    def read() -> None:
        with fifo.open(errors="replace") as file:
            got.extend(line.rstrip("\n") for line in file)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread, got


def test_what_finds_no_room_is_counted_and_said(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    os.mkfifo(path)  # to open it for writing waits until somebody reads
    writer = LogWriter(path, max_bytes=1 << 20, kept=2, max_waiting=3)
    writer.add(b"line 0\n")
    while not writer.stuck_s():
        time.sleep(0.005)
    for n in range(1, 10):
        writer.add(b"line %d\n" % n)
    assert not writer.written(0.01)
    assert writer.dropped == writer.missing == 6
    thread, got = read_from(path)
    assert writer.written(20)
    writer.add(b"the last\n")
    assert writer.written(20) and writer.missing == 0
    writer.close()
    thread.join(20)
    *first, note, last = got
    assert first == [f"line {n}" for n in range(4)] and last == "the last"
    assert "6 line(s) are missing here" in note and " WARNING " in note
    assert writer.stuck_s() == 0.0


async def test_a_run_whose_log_hangs_answers_and_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LogWriter", functools.partial(LogWriter, max_waiting=5))
    log = paths.supervisor_log("stage")
    log.parent.mkdir(parents=True)
    os.mkfifo(log)
    async with staged() as stage:
        await stage.heard("ready")
        status = await stage.status()
        (old,) = pids(status, "engine")
        os.kill(old, 9)
        await stage.heard("death")
        status = await stage.until(lambda s: s.state == "ready" and s.restarts == 1)
        assert pids(status, "engine") != [old]
        told = await asyncio.to_thread(stage.client.logs, 100)
        assert "SIGKILL" in told  # what is not on disk is still there to be read
        counted = paths.supervisor_metrics(stage.run)
        async with asyncio.timeout(20):
            while not counted.exists() or not dropped(counted):
                await asyncio.sleep(0.02)
        thread, got = read_from(log)
    await asyncio.to_thread(thread.join, 20)
    assert any("missing here" in line for line in got)


def dropped(path: Path) -> float:
    told = msgspec.json.decode(path.read_bytes())["appliance_log_lines_dropped_total"]
    return float(told["series"][""])


def test_it_is_an_alert() -> None:
    seen = Seen(now=1000.0)
    (found,) = findings(msgspec.structs.replace(seen, log_missing=1200))
    assert found.code == "APL-ALR-014" and "1,200 lines" in found.message
    (found,) = findings(msgspec.structs.replace(seen, log_stuck_s=9.0))
    assert "has not answered for 9 s" in found.message
    assert not findings(msgspec.structs.replace(seen, log_stuck_s=1.0))


def test_room_is_asked_for_beside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers, asked = threading.Event(), threading.Event()

    def hang(*folders: Path) -> dict[str, int]:
        asked.set()
        answers.wait(20)
        return {str(folders[0]): 7}

    monkeypatch.setattr(disks, "disk_free", hang)
    monkeypatch.setattr(disks, "EVERY_S", 0.0)
    watched = Disks(tmp_path)
    assert watched.free() == {} and asked.wait(20)
    assert watched.free() == {}
    answers.set()
    while not watched.free():
        time.sleep(0.005)
    assert watched.free() == {str(tmp_path): 7}


def test_the_note_is_a_line_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.log"
    writer = LogWriter(path, max_bytes=1 << 20, kept=2)
    with monkeypatch.context() as refused:
        refused.setattr(os, "write", _refuse)
        writer.add(b"lost\n")
        assert writer.written(20) and writer.dropped == 1
    writer.add(b"kept\n")
    writer.close()
    assert len(read_file(path, 9, Filter(component="supervisor", level="warning"))) == 2


def _refuse(fd: int, data: bytes) -> int:
    raise OSError(28, "No space left on device")
