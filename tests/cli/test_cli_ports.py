"""A port that is taken: who has it, which is free, and that yes takes that one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import LLAMA

from appliance.cli import output, start
from appliance.errors import UsageError
from appliance.supervisor.claim import bind

Cli = Callable[..., Any]


@pytest.fixture
def words(own_home: Path) -> Iterator[list[str]]:
    """Of an `up` whose port is taken; the last of them is the port."""
    (own_home / "tiny").mkdir()
    (own_home / "tiny" / "config.json").write_text(json.dumps(LLAMA))
    taken = bind("127.0.0.1", 0)
    port = str(taken.getsockname()[1])
    yield ["up", str(own_home / "tiny"), "--load-format", "dummy", "-d", "--port", port]
    taken.close()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ports that would have been served on."""
    ports: list[int] = []

    def spawn(claim: start.Claim) -> None:
        ports.append(claim.config.serve.port)
        assert claim.listener.getsockname()[1] == claim.config.serve.port
        claim.listener.close()
        claim.lock.release()
        raise UsageError("far enough")

    monkeypatch.setattr(start, "spawn", spawn)
    return ports


def test_the_error_names_a_free_port_and_who_has_it(
    cli: Cli, words: list[str], served: list[int]
) -> None:
    said = cli(*words, "--json")
    error = json.loads(said.out)["error"]
    detail = error["detail"]
    assert said.code == 11 and not served
    assert detail["port"] == int(words[-1]) and detail["process"]
    assert error["fix"][0].startswith(f"--port {detail['free_port']} ")
    assert f"kill {detail['pid']}" in error["fix"][1]
    bind("127.0.0.1", detail["free_port"]).close()


def test_yes_takes_the_next_free_one(cli: Cli, words: list[str], served: list[int]) -> None:
    said = cli(*words, "-y")
    (port,) = served
    assert port > int(words[-1])
    assert f"Port {port} is taken instead" in said.err and f":{port} " in said.err


def test_a_terminal_is_asked(
    cli: Cli, words: list[str], served: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(output.Output, "confirm", lambda self, text: bool(asked.append(text)))
    assert cli(*words).code == 11
    assert "Take port" in asked[0] and not served
