"""connect --write: clients' files changed in our lines only, shown first, backed up, once."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.cli import client_files
from appliance.cli.client_files import (
    Place,
    target_of,
    with_json,
    with_lines,
    with_model,
    with_toml,
)

Cli = Callable[..., Any]
ENTRY = ["- name: default (appliance)", "  provider: openai"]
CLIENTS = ("open-webui", "continue", "claude-code", "codex", "aider")


@pytest.fixture
def home(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(own_home))
    monkeypatch.delenv("CODEX_HOME", raising=False)
    monkeypatch.delenv("APPLIANCE_API_KEY", raising=False)
    monkeypatch.chdir(own_home)
    return own_home


def connect(cli: Cli, client: str, *words: str) -> Any:
    return cli("connect", client, "--write", "--url", "http://h:1/v1", "--model", "m", *words)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_file_is_made_and_made_once(cli: Cli, home: Path, client: str) -> None:
    target = target_of(client, Place("http://h:1", "m"))
    assert target is not None
    said = connect(cli, client)
    assert said.code == 2 and "nobody agreed" in said.err and not target.path.exists()
    assert f"+++ {target.path}" in said.err
    told = json.loads(connect(cli, client, "-y", "--json").out)
    assert told["written"] and told["path"] == str(target.path) and told["backup"] is None
    text = target.path.read_text()
    assert target.path.stat().st_mode & 0o777 == 0o600
    assert "http://h:1" in text
    told = json.loads(connect(cli, client, "-y", "--json").out)
    assert not told["written"] and told["diff"] == "" and target.path.read_text() == text
    other = cli("connect", client, "--write", "-y", "--url", "http://h:2", "--model", "m", "--json")
    backup = Path(json.loads(other.out)["backup"])
    assert backup.read_text() == text and "http://h:1" not in target.path.read_text()
    assert len(list(target.path.parent.glob(f"*{target.path.name}*"))) == 2


def test_what_is_written_is_what_the_clients_read(cli: Cli, home: Path) -> None:
    for client in CLIENTS:
        assert connect(cli, client, "-y").code == 0
    [model] = yaml.safe_load((home / ".continue/config.yaml").read_text())["models"]
    assert (model["apiBase"], model["model"], model["apiKey"]) == ("http://h:1/v1", "m", "none")
    settings = json.loads((home / ".claude/settings.json").read_text())["env"]
    assert settings["ANTHROPIC_BASE_URL"] == "http://h:1"
    codex = tomllib.loads((home / ".codex/appliance.config.toml").read_text())
    provider = codex["model_providers"][codex["model_provider"]]
    assert provider == {"name": "appliance", "base_url": "http://h:1/v1", "wire_api": "responses"}
    aider = yaml.safe_load((home / ".aider.conf.yml").read_text())
    assert aider["model"] == "openai/m" and aider["openai-api-base"] == "http://h:1/v1"
    assert (home / "open-webui.env").read_text().splitlines() == [
        "OPENAI_API_BASE_URL=http://h:1/v1", "OPENAI_API_KEY=none",
    ]  # fmt: skip


def test_a_key_is_never_written(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_API_KEY", "sk-appliance-hidden")
    for client in CLIENTS:
        said = connect(cli, client, "-y")
        assert said.code == 0 and "hidden" not in said.out + said.err
    for path in home.rglob("*"):
        assert not path.is_file() or "hidden" not in path.read_text(), path
    codex = tomllib.loads((home / ".codex/appliance.config.toml").read_text())
    assert codex["model_providers"]["appliance"]["env_key"] == "APPLIANCE_API_KEY"


def test_keys_of_others_are_kept_and_not_shown(cli: Cli, home: Path) -> None:
    path = home / ".aider.conf.yml"
    path.write_text("dark-mode: true\nopenai-api-key: sk-proj-abcdef\nmodel: gpt\n")
    said = connect(cli, "aider", "-y")
    assert "abcdef" not in said.out + said.err and "-openai-api-key: sk-p…" in said.err
    assert path.read_text().splitlines() == [
        "dark-mode: true", "openai-api-key: none", "model: openai/m",
        "openai-api-base: http://h:1/v1",
    ]  # fmt: skip
    [backup] = home.glob(".aider.conf.yml.*.bak")
    assert "abcdef" in backup.read_text() and backup.stat().st_mode == path.stat().st_mode


def test_a_link_stays_one(cli: Cli, home: Path) -> None:
    (home / "dotfiles").mkdir()
    real = home / "dotfiles/aider.yml"
    real.write_text("dark-mode: true\n")
    (home / ".aider.conf.yml").symlink_to(real)
    assert connect(cli, "aider", "-y").code == 0
    assert (home / ".aider.conf.yml").is_symlink() and "openai/m" in real.read_text()


def test_libraries_have_no_file(cli: Cli, home: Path) -> None:
    said = connect(cli, "openai", "-y")
    assert said.code == 2 and "is a library" in said.err and "codex" in said.err
    assert cli("connect", "--write").code == 2
    assert cli("connect", "codex", "--write", "--print").code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1]", "no JSON object"), ("{", "not JSON"), ("// a\n{}", "not JSON")],
)
def test_files_of_another_form_are_left_alone(cli: Cli, home: Path, text: str, said: str) -> None:
    path = home / ".claude/settings.json"
    path.parent.mkdir()
    path.write_text(text)
    answer = connect(cli, "claude-code", "-y")
    assert answer.code == 2 and said in answer.err and "APL-USE-041" in answer.err
    assert path.read_text() == text and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("old", "indent"),
    [
        ("name: x\nmodels:\n  - name: a\n    provider: b\ncontext:\n  - provider: code\n", "  "),
        ("models:\n- name: a\n  provider: b\n", ""),
        ("models:   # mine\n\n    # first\n    - name: a\n      provider: b\n", "    "),
        ("name: x\nmodels: []\nrules: []", "  "),
        ("name: x", "  "),
    ],
)
def test_a_model_beside_others(old: str, indent: str) -> None:
    new = with_model(old, ENTRY)
    assert with_model(new, ENTRY) == new
    assert f"\n{indent}- name: default (appliance)\n" in new
    before, after = yaml.safe_load(old), yaml.safe_load(new)
    assert after["models"][0] == {"name": "default (appliance)", "provider": "openai"}
    assert after["models"][1:] == (before.get("models") or [])
    assert {k: v for k, v in after.items() if k != "models"} == {
        k: v for k, v in before.items() if k != "models"
    }


def test_a_model_list_in_one_line_is_left_alone() -> None:
    with pytest.raises(ValueError):
        with_model("models: [{name: a}]\n", ENTRY)


def test_toml_keys_stand_before_tables() -> None:
    old = "# mine\n[tools]\nweb = true\n"
    new = with_toml(old, ['model = "m"'])
    assert tomllib.loads(new) == {"model": "m", "tools": {"web": True}} and new.endswith(old)
    assert with_toml(new, ['model = "m"']) == new
    for wrong in ('model = "other"\n', "= 3\n"):
        with pytest.raises(ValueError):
            with_toml(wrong, ['model = "m"'])


def test_lines_and_objects_keep_what_is_there() -> None:
    assert with_lines("A=1\nAB=2\n#A=3", {"A": "x\\1"}, "=") == "A=x\\1\nAB=2\n#A=3\n"
    with pytest.raises(ValueError):
        with_lines("A=1\nA=2\n", {"A": "x"}, "=")
    old = '{"env": {"X": "1"}, "permissions": {"allow": []}}'
    assert json.loads(with_json(old, {"env": {"Y": "2"}})) == {
        "env": {"X": "1", "Y": "2"}, "permissions": {"allow": []},
    }  # fmt: skip
    assert with_json(old, {"env": {"X": "1"}}) == old


def test_a_file_that_cannot_be_written_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "f"
    path.write_text("old\n")

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(client_files.ApplianceError, match="No space"):
        client_files.write(path, "old\n", "new\n")
    assert path.read_text() == "old\n"
