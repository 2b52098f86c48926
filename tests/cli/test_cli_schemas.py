"""The names of every field that --json prints, kept in a file: a change is one somebody saw."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import paths
from appliance.cli import main, prepare
from appliance.hardware import HardwareSnapshot

Cli = Callable[..., Any]
GOLDEN = Path(__file__).with_name("golden") / "schemas.json"
RENEW = "APPLIANCE_RENEW_SCHEMAS"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
}


def shape(value: Any) -> Any:
    """Names only: what is null or a number here may be text on another machine."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "value"


@pytest.fixture
def home(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the hub's cache, an unfinished file, a log, a unit and a setting."""
    monkeypatch.setattr(prepare, "detect", lambda: HardwareSnapshot(8, 64 << 30, 60 << 30))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own_home / "xdg"))
    folder = own_home / "hf/hub/models--org--tiny/snapshots/c0ffee"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    log = paths.supervisor_log("default")
    log.parent.mkdir(parents=True)
    log.write_text("2026-11-20T12:00:01.000Z INFO    engine-0 hello\n")
    return own_home


COMMANDS = (
    ("version",),
    (),
    ("ps", "-a"),
    ("status",),
    ("down",),
    ("logs",),
    ("list",),
    ("show", "org/tiny"),
    ("profile", "list"),
    ("profile", "show", "h100x1-bf16"),
    ("profile", "explain", "--profile", "cpu"),
    ("profile", "create", "mine", "--from", "cpu"),
    ("config", "show", "--profile", "cpu"),
    ("config", "show", "--profile", "cpu", "--origin"),
    ("config", "get", "serve.port"),
    ("config", "set", "serve.port", "9"),
    ("config", "unset", "serve.port"),
    ("config", "validate"),
    ("config", "path"),
    ("connect",),
    ("connect", "openai"),
    ("cache", "df"),
    ("cache", "prune", "--dry-run"),
    ("cache", "verify"),
    ("service", "install", "--print"),
    ("completion", "bash"),
    ("explain",),
    ("explain", "APL-FIT-001"),
    ("doctor",),
    ("up", "--dry-run", "--profile", "cpu"),
    ("up", "no/such"),
)


def test_names_of_every_field(cli: Cli, home: Path) -> None:
    found = {}
    for words in COMMANDS:
        said = cli(*words, "--json")
        lines = said.out.splitlines()
        assert lines, (words, said.err)
        for line in lines:
            told = json.loads(line)
            name = told.get("schema", " ".join(words))
            found.setdefault(name, shape(told))
    for name in found:
        assert name == "logs" or name.startswith("appliance."), name
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if os.environ.get(RENEW):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), f"{RENEW}=1 pytest {Path(__file__).name}, and say why"


def test_every_command_that_can_is_among_them() -> None:
    """The others need a run, a server or a hub; their tests stand elsewhere."""
    elsewhere = {"pull", "top", "chat", "run", "restart", "rm", "bench"}
    told = {words[0] for words in COMMANDS if words}
    assert told >= set(main.COMMANDS) - elsewhere - {"key"}
