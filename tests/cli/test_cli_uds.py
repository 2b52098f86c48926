"""`up --uds`: what is refused before anything starts, and how the others say where it is."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_stage import write_tiny

from appliance import address, paths
from appliance.cli import ended_requests, prepare
from appliance.cli.output import Output
from appliance.cli.status import status_text
from appliance.hardware import HardwareSnapshot
from appliance.status import RunStatus, TopSnapshot
from appliance.tui import figures, tables, text

Cli = Callable[..., Any]
SOCKET = "/run/llm.sock"
URL = address.unix_url(SOCKET)


@pytest.fixture
def up(cli: Cli, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`up --dry-run` of a tiny model."""
    monkeypatch.setattr(prepare, "detect", lambda: HardwareSnapshot(8, 64 << 30, 60 << 30))
    monkeypatch.chdir(own_home)
    model = str(write_tiny(own_home / "tiny"))
    return lambda *words: cli("up", model, "--load-format", "dummy", "--dry-run", *words)


def test_the_plan_carries_it(up: Cli, own_home: Path) -> None:
    plan = json.loads(up("--uds", "llm.sock", "--json").out)
    assert plan["config"]["serve"]["uds"] == str(own_home / "llm.sock")
    (answer,) = [a for a in plan["answers"] if a["field"] == "serve.uds"]
    assert (answer["value"], answer["source"]) == (str(own_home / "llm.sock"), "flag")


def test_what_is_refused(up: Cli, own_home: Path) -> None:
    for more in (("--port", "1"), ("--host", "::1")):
        said = up("--uds", "x.sock", *more)
        assert said.code == 2 and "in place of --host and --port" in said.err
    said = up("--uds", "x" * 120)
    assert said.code == 2 and "bytes too long" in said.err
    fix = said.err.partition("--uds ")[2].split()[0]
    assert len(fix) <= 107 and up("--uds", fix).code == 0
    said = up("--set", "serve.uds=x.sock")
    assert said.code == 2 and f"--uds {own_home / 'x.sock'}" in said.err
    said = up("--uds", "x.sock", "--set", "serve.uds_mode=777")
    assert said.code == 2 and "serve.uds_mode" in said.err


def test_everybody_is_let_in_only_when_told_to(up: Cli, cli: Cli) -> None:
    """As on an address that others reach."""
    words = ("--uds", "x.sock", "--set", "serve.uds_mode=666")
    said = up(*words)
    assert said.code == 2 and "APL-USE-026" in said.err and "everybody on this machine" in said.err
    assert up("--uds", "x.sock", "--set", "serve.uds_mode=660").code == 0
    assert up("--uds", "x.sock", "--set", "serve.host=0.0.0.0").code == 0, "no port is opened"
    assert up(*words, "--no-auth").code == 0
    cli("key", "add", "alice")
    assert up(*words).code == 0


def test_the_commands_say_how_to_reach_it() -> None:
    curl = f"curl --unix-socket {SOCKET} http://localhost/v1/models"
    shown = status_text(Output(color="never"), RunStatus(state="ready", url=URL, uds=SOCKET))
    assert f"at unix:{SOCKET}" in shown and curl in shown
    assert "curl" not in status_text(
        Output(color="never"), RunStatus(state="ready", url="http://127.0.0.1:1")
    )
    row = {"route": "/v1/completions", "request": {"prompt": "x"}}
    assert f"--unix-socket {SOCKET} http://localhost/v1/completions" in (
        ended_requests.curl_of(row, URL)
    )
    top = TopSnapshot(url=URL, state="ready")
    assert f"--unix-socket {SOCKET} http://localhost/v1/chat" in text.ask_by_curl(top)
    line = "".join(part for _, part in figures.title(top, 100, "READY"))
    assert f"unix:{SOCKET}" in line
    assert f"client at unix:{SOCKET}" in tables.no_requests(top, "", text.UNICODE)


def test_clients_that_know_sockets_and_those_that_know_ports(cli: Cli) -> None:
    for client in ("openai", "langchain"):
        snippet = cli("connect", client, "--url", f"unix:{SOCKET}").out
        ast.parse(snippet)
        assert f"uds='{SOCKET}'" in snippet and 'base_url="http://localhost/v1"' in snippet
    snippet = cli("connect", "codex", "--url", f"unix:{SOCKET}").out
    assert f"fork UNIX-CONNECT:{SOCKET}\n" in snippet and "http://127.0.0.1:8000/v1" in snippet
    said = cli("connect", "codex", "--url", f"unix:{SOCKET}", "--write", "-y")
    assert said.code == 2 and "socat" in said.err and "--url http://127.0.0.1:8000" in said.err


def test_a_path_in_the_settings_gives_way_to_a_port_that_is_typed(cli: Cli, up: Cli) -> None:
    path = paths.config_dir() / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(f'[serve]\nuds = "{SOCKET}"\n')

    def plan(*words: str) -> Any:
        return json.loads(up(*words, "--json").out)["config"]["serve"]

    assert plan()["uds"] == SOCKET
    assert (plan("--port", "9")["uds"], plan("--port", "9")["port"]) == ("", 9)
    assert plan("--host", "::1")["uds"] == ""
    assert plan("--uds", "/run/other.sock")["uds"] == "/run/other.sock"
