"""What systemd is told, over a socket of ours."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from supervisor_stage import StandIns, staged

from appliance.supervisor.notify import Notifier
from appliance.supervisor.replica import PHASES


async def test_ready_and_stopping_are_told(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_folders.mkdir(exist_ok=True)
    path = own_folders / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(path))
        ear.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        async with staged(StandIns(phases=list(PHASES[1:]))) as stage:
            await stage.heard("ready")
            await asyncio.to_thread(stage.client.down, 0.0)
        heard = []
        while True:
            try:
                heard.append(ear.recv(4096).decode())
            except BlockingIOError:
                break
    assert "READY=1\nSTATUS=serving" in heard
    stopping = "STOPPING=1\nSTATUS=draining 0 request(s), at most 0 s"
    assert heard[-2:] == [stopping, "STATUS=stopped"]
    phases = [text.removeprefix("STATUS=starting: ") for text in heard if "=starting: " in text]
    # those that are over before the next look are not told
    assert phases and phases == [p for p in PHASES if p in phases]
    assert heard.index("READY=1\nSTATUS=serving") < heard.index(stopping)


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    Notifier().tell(READY="1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    Notifier().tell(READY="1")
