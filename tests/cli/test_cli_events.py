"""`appliance events` of a run of stand-ins."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance import paths
from appliance.client import Client

Cli = Callable[..., Any]


def test_what_has_been(cli: Cli, live: Path) -> None:
    said = cli("events")
    assert said.code == 0
    lines = said.out.splitlines()
    assert "  started     tiny at http://127.0.0.1:" in lines[0]
    assert any("  ready       ready in " in line for line in lines)
    told = [json.loads(line) for line in cli("events", "--json").out.splitlines()]
    assert {event["schema"] for event in told} == {"appliance.event/1"}
    assert len(told) >= len(lines)
    rest = cli("events", "--json", "--after", told[-2]["id"]).out.splitlines()
    assert json.loads(rest[0])["id"] == told[-1]["id"]
    assert len(cli("events", "-n", "1").out.splitlines()) == 1
    assert "gap" in cli("events", "--after", "1-1").out


def test_a_death_has_its_reason_and_an_alert_its_fix(cli: Cli, live: Path) -> None:
    client = Client(paths.control_socket(live))
    engine = next(p.pid for p in client.status().processes if p.role == "engine")
    os.kill(engine, signal.SIGKILL)
    end = time.monotonic() + 20
    while "alert" not in (told := cli("events").out) and time.monotonic() < end:
        time.sleep(0.05)
    assert "death       engine 0 was killed by SIGKILL\n    " in told
    assert "\n    fix   appliance logs --level error" in told


def test_it_is_followed_to_the_end_of_the_run(cli: Cli, live: Path) -> None:
    stop = threading.Timer(0.5, Client(paths.control_socket(live)).down, (0.0,))
    stop.start()
    lines = cli("events", "--follow").out.splitlines()
    stop.join()
    assert "stopped in" in lines[-1]


def test_nobody_there(cli: Cli) -> None:
    assert cli("events").code == 3
    assert cli("events", "nobody").code == 4
