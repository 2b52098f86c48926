"""Options that stand beside the main way: one file more, no network, keys from a file, amounts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_stage import write_tiny

from appliance import keys, paths
from appliance.cli import doctor, preflight, prepare, show, start, version
from appliance.cli.amounts import byte_count, seconds
from appliance.cli.lines import log_data
from appliance.errors import UsageError
from appliance.hardware import HardwareSnapshot

Cli = Callable[..., Any]
MACHINE = HardwareSnapshot(8, 64 << 30, 60 << 30)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (prepare, doctor):
        monkeypatch.setattr(module, "detect", lambda: MACHINE)


def test_one_file_more_is_the_strongest(cli: Cli, own_home: Path) -> None:
    cli("config", "set", "serve.port", "7001")
    more = own_home / "more.toml"
    more.write_text("[serve]\nport = 7002\n")
    for words in (["--config", str(more), "config", "get"], ["config", "get"]):
        said = cli(*words, "serve.port", "--origin")
        assert said.out.startswith("7002" if "--config" in words else "7001")
    assert str(more) in cli("config", "get", "serve.port", "--origin", "--config", str(more)).out
    assert "APPLIANCE_CONFIG" not in os.environ
    said = cli("--config", str(own_home / "none.toml"), "config", "path")
    assert said.code == 2 and "does not exist" in said.err


def test_offline_asks_no_hub(cli: Cli) -> None:
    said = cli("pull", "org/tiny", "--offline")
    assert said.code == 6 and "switched off by --offline" in said.err
    assert "APPLIANCE_OFFLINE" not in os.environ
    said = cli("doctor", "--network", "--offline", "--json")
    assert not [c for c in json.loads(said.out)["checks"] if c["name"] == "network"]


def test_amounts() -> None:
    assert byte_count("100MB/s", "x") == 100_000_000
    assert byte_count("1.5 GiB", "x") == 3 << 29
    assert [seconds(t, "x") for t in ("500ms", "10m", "2d")] == [0.5, 600, 172800]
    for bad in ("1k", "1K", "10", "0MB", "-1MB", "MB", "1e3MB"):
        with pytest.raises(UsageError, match="no number of bytes"):
            byte_count(bad, "x")
    with pytest.raises(UsageError, match="--older-than: '3 moons' is no length of time"):
        seconds("3 moons", "--older-than")


def test_doctor_for_a_model_and_a_profile(cli: Cli) -> None:
    def serve(*words: str) -> dict[str, str]:
        told = json.loads(cli("doctor", *words, "--json").out)
        return next(dict(c) for c in told["checks"] if c["name"] == "serve")

    assert serve("--for", "appliance-default")["verdict"] == "ok"
    found = serve("--profile", "h100x8-fp8")
    assert found["verdict"] == "block" and "needs 8 GPU(s)" in found["found"]
    found = serve("--for", "no/such")
    assert found["verdict"] == "block" and found["fix"] == "appliance pull no/such"


def test_versions_of_live_runs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    said = cli("version", "--check", "--json")
    assert said.code == 0 and json.loads(said.out)["runs"] == []
    monkeypatch.setattr(version, "live_versions", lambda: {"old": "0.0.1", "mute": None})
    said = cli("version", "--check")
    assert said.code == 1
    assert "run old            0.0.1" in said.out and "appliance down old" in said.out
    assert json.loads(cli("version", "--check", "--json").out)["ok"] is False


def test_a_line_of_the_log_as_json() -> None:
    told = log_data("2026-11-20T12:00:01.123Z WARNING engine-0 it is odd")
    assert told == {
        "schema": "appliance.log/1",
        "at": "2026-11-20T12:00:01.123Z",
        "level": "warning",
        "component": "engine-0",
        "message": "it is odd",
    }
    assert log_data("    at line 3")["message"] == "    at line 3"


def test_keys_of_one_run_from_a_file(
    cli: Cli, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = own_home / "keys.txt"
    file.write_text("a-key-of-sixteen-or-more\n\na-second-one-of-the-kind\n")
    words = ["up", "--load-format", "dummy", "--port", "0", "--api-key-file", str(file)]
    file.chmod(0o644)
    said = cli(*words)
    assert said.code == 2 and f"chmod 600 {file}" in said.err
    file.chmod(0o600)
    said = cli(*words, "--dry-run", "--json")
    place = paths.runtime_dir() / "default" / "keys.json"
    assert json.loads(said.out)["config"]["serve"]["keys_file"] == str(place)
    assert not place.exists(), "a dry run writes nothing"
    seen: list[start.Claim] = []

    def spawn(claim: start.Claim) -> None:
        seen.append(claim)
        raise UsageError("far enough")

    monkeypatch.setattr(start, "spawn", spawn)
    assert cli(*words, "-d", "--host", "0.0.0.0").code == 2
    seen[0].lock.release()
    seen[0].listener.close()
    found = keys.read_keys(place)
    assert [k.name for k in found] == ["key-0", "key-1"]
    assert found[0].sha256 == keys.digest(b"a-key-of-sixteen-or-more")
    assert "sixteen" not in place.read_text()
    file.write_text("short\n")
    said = cli(*words)
    assert said.code == 2 and "shorter than 16 characters" in said.err
    said = cli(*words[:-1], str(own_home / "none"))
    assert said.code == 2 and "cannot be read" in said.err


def test_a_base_model_is_told_what_chats_need(cli: Cli, own_home: Path) -> None:
    folder = write_tiny(own_home / "Thing-Base")
    (folder / "tokenizer_config.json").write_text("{}")
    base = preflight.base_model_note(
        prepare.prepare(prepare.Asked(str(folder), options={"load_format": "dummy"}))
    )
    assert base.startswith("A base model") and "--chat-template FILE" in base
    given = own_home / "chat.jinja"
    given.write_text("{{ messages[0].content }}")
    options = {"load_format": "dummy", "chat_template": str(given)}
    asked = prepare.Asked(str(folder), options=options)
    assert preflight.base_model_note(prepare.prepare(asked)) == ""
    words = ["up", str(folder), "--load-format", "dummy", "--dry-run", "--json"]
    told = json.loads(cli(*words, "--chat-template", str(given)).out)["config"]["model"]
    assert told["chat_template"] == str(given.resolve())
    said = cli(*words, "--chat-template", str(own_home / "none.jinja"))
    assert said.code == 2 and "does not exist" in said.out
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    shown = json.loads(cli("show", str(folder), "--json").out)
    assert shown["chat_template"] is False and shown["chat_sibling"] is None
    assert show._base_text("org/Thing-Instruct").endswith("names: org/Thing-Instruct")


def test_the_embedded_model_and_folders_without_a_dot(
    cli: Cli, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = cli("show", "appliance-default")
    assert shown.code == 0 and "LlamaForCausalLM" in shown.out
    (own_home / "org/mine").mkdir(parents=True)
    (own_home / "org/mine/config.json").write_text("{}")
    monkeypatch.chdir(own_home)
    said = cli("up", "org/mine")
    assert said.code == 4 and "./org/mine" in said.err
    assert "./org" not in cli("up", "org/other").err
