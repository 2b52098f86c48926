"""config get, set, unset, validate and --origin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import paths

Cli = Callable[..., Any]


@pytest.fixture
def mine(own_home: Path) -> Path:
    paths.config_dir().mkdir(parents=True)
    return paths.config_dir() / "config.toml"


def test_set_get_unset(cli: Cli, mine: Path) -> None:
    assert cli("config", "set", "serve.port", "9001").code == 0
    assert cli("config", "set", "schedule.chunk", "512").code == 0
    assert cli("config", "set", "serve.max_queue", "7").code == 0
    assert mine.read_text() == ("[serve]\nport = 9001\nmax_queue = 7\n\n[schedule]\nchunk = 512\n")
    assert cli("config", "get", "serve.port").out == "9001\n"
    assert f"9001  (file {mine}: asked for)" in cli("config", "get", "serve.port", "--origin").out
    told = json.loads(cli("config", "get", "schedule.chunk", "--json").out)
    assert told["schema"] == "appliance.setting/1" and told["value"] == 512
    assert cli("config", "unset", "serve.port").code == 0
    assert cli("config", "get", "serve.port").out == "8000\n"
    said = cli("config", "unset", "serve.port")
    assert said.code == 2 and "does not set serve.port" in said.err


def test_set_keeps_comments(cli: Cli, mine: Path) -> None:
    mine.write_text(
        "# mine\nlog_level = 'info'\n\n[serve] # door\n# why\nport = 1  # old\n\n[engine]\ntp = 2\n"
    )
    assert cli("config", "set", "serve.port", "2").code == 0
    assert cli("config", "set", "log_level", "debug").code == 0
    assert mine.read_text() == (
        '# mine\nlog_level = "debug"\n\n[serve] # door\n# why\nport = 2\n\n[engine]\ntp = 2\n'
    )


def test_set_over_a_value_of_several_lines(cli: Cli, mine: Path) -> None:
    mine.write_text("[engine]\ngraph_batch_sizes = [\n  1,\n  2,\n]\ntp = 2\n")
    assert cli("config", "set", "engine.graph_batch_sizes", "4,8").code == 0
    assert mine.read_text() == "[engine]\ngraph_batch_sizes = [4, 8]\ntp = 2\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("set", "serve.prot", "1"), "Did you mean 'serve.port'"),
        (("set", "serve.port", "eight"), "serve.port cannot be 'eight'"),
        (("set", "log_level", "loud"), "debug, info"),
        (("get", "prt"), "no setting 'prt'"),
    ],
)
def test_wrong_settings_are_never_written(
    cli: Cli, mine: Path, words: tuple[str, ...], says: str
) -> None:
    said = cli("config", *words)
    assert said.code == 2 and says in said.err and not mine.exists()


def test_validate(cli: Cli, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine.write_text("[serve]\nport = 1\n")
    assert cli("config", "validate").code == 0
    mine.write_text("[serve]\nprot = 1\n")
    monkeypatch.setenv("APPLIANCE_ENGINE_TP", "two")
    paths.user_profiles().mkdir()
    (paths.user_profiles() / "bad.toml").write_text("name = ")
    said = cli("config", "validate", "--json")
    told = json.loads(said.out)
    assert said.code == 2 and [c["ok"] for c in told["checks"]] == [False, False, False]
    assert "serve.port" in told["checks"][0]["problem"]
    assert "✗" in cli("config", "validate").out


def test_origin_tells_what_was_not_heard(
    cli: Cli, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.write_text("[schedule]\nchunk = 1024\n")
    monkeypatch.setenv("APPLIANCE_SCHEDULE_CHUNK", "256")
    words = ("config", "show", "--profile", "cpu", "--set", "schedule.chunk=128", "--origin")
    line = next(x for x in cli(*words).out.splitlines() if x.startswith("schedule.chunk"))
    assert line.split()[:3] == ["schedule.chunk", "128", "flag"]
    assert line.endswith(f"256 (environment), 1024 (file {mine}), 2048 (profile cpu)")
    told = json.loads(cli(*words, "--json").out)
    chunk = next(a for a in told["answers"] if a["field"] == "schedule.chunk")
    assert [w["value"] for w in chunk["weaker"]] == [256, 1024, 2048]
