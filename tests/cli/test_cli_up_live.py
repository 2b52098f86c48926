"""`up -d --wait` with the real runtime and a tiny made-up model."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_stage import write_tiny

from appliance import paths
from appliance.client import Client
from appliance.errors import NotRunningError
from appliance.supervisor.claim import held

Cli = Callable[..., Any]


@pytest.fixture
def tiny(own_home: Path) -> Iterator[Path]:
    folder = write_tiny(own_home / "tiny")
    yield folder
    run = paths.runtime_dir() / "default"
    if held(run):
        Client(paths.control_socket(run)).down(0.0)


def up(cli: Cli, model: Path, *more: str) -> Any:
    return cli("up", str(model), "--load-format", "dummy", "--port", "0", "-d", "--wait=120", *more)


@pytest.mark.slow
def test_up_serves_survives_and_goes_down(cli: Cli, tiny: Path) -> None:
    said = up(cli, tiny, "--json")
    assert said.code == 0, said.err
    status = json.loads(said.out)
    assert (status["state"], status["model"], status["profile"]) == ("ready", "tiny", "cpu")
    roles = [(p["role"], p["rank"]) for p in status["processes"]]
    assert roles[0] == ("supervisor", None) and roles[-1] == ("engine", 0)
    assert ("frontend", None) in roles
    light = [p for p in status["processes"] if p["role"] != "engine"]
    assert all(p["memory_bytes"] < 150e6 for p in light), light
    words = ["run", "hello", "--max-tokens", "5", "--temperature", "0", "--json"]
    first = json.loads(cli(*words).out)
    assert first["usage"]["completion_tokens"] <= 5
    assert up(cli, tiny).code == 11
    engine = next(p["pid"] for p in status["processes"] if p["role"] == "engine")
    os.kill(engine, signal.SIGKILL)
    again = json.loads(cli(*words).out)  # waits for the engine to come back
    assert again["text"] == first["text"]
    assert json.loads(cli("status", "--json").out)["restarts"] == 1
    top = json.loads(cli("top", "--once", "--json").out)
    assert top["kv"]["total_tokens"] > 0
    assert cli("down", "-t", "5").code == 0
    assert cli("status").code == 3


@pytest.mark.slow
def test_what_cannot_start_is_told_and_leaves_nothing(cli: Cli, tiny: Path) -> None:
    (tiny / "tokenizer.json").write_text("{")
    said = up(cli, tiny)
    assert said.code == 9
    assert "tokenizer.json cannot be read" in said.err
    assert "Its log:" in said.err
    end = time.monotonic() + 5
    while held(paths.runtime_dir() / "default") and time.monotonic() < end:
        time.sleep(0.02)
    with pytest.raises(NotRunningError):
        Client(paths.control_socket(paths.runtime_dir() / "default")).status()
