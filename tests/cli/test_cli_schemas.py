"""What --json prints, kept in a file: the name of every field and what it holds. A change is one
that somebody saw.

    APPLIANCE_RENEW_SCHEMAS=1 pytest tests/cli/test_cli_schemas.py
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import LLAMA

from appliance import keys, paths
from appliance.cli import main, prepare, service
from appliance.cli import tune as tune_module
from appliance.hardware import HardwareSnapshot

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from fakehub import FakeHub, Repo, tiny_model

Cli = Callable[..., Any]
GOLDEN = Path(__file__).with_name("golden") / "schemas.json"
RENEW = "APPLIANCE_RENEW_SCHEMAS"
RENEWED: set[str] = set()
"""Schemas written anew since the tests began: what another of them tells is added."""
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")
FOR_PEOPLE = re.compile(r"~?\d[\d.,]*\s?(B|[kKMGT]i?B|ms|s|min|%|tok/s)(/s)?|\d+ (ago|seconds?)")
"""What no value may be: a figure with its unit."""
BY_NAME = {
    # fields whose keys are data: settings, metrics, buckets
    "overrides", "properties", "$defs", "config_json", "usage", "progress_by_file",
}  # fmt: skip


def kind(value: Any) -> str:
    if isinstance(value, str):
        return "time" if TIME.fullmatch(value) else "text"
    return {type(None): "null", bool: "bool", int: "int", float: "float"}[type(value)]


def shape(value: Any) -> Any:
    """Fields by name, a list as the union of its parts, a leaf as what it holds."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in sorted(value.items())}
    if isinstance(value, list):
        found: Any = None
        for part in value:
            found = union(found, shape(part))
        return [] if found is None else [found]
    return kind(value)


def union(one: Any, other: Any) -> Any:
    """What holds both. A field that one of two objects lacks is told with a question mark."""
    if one is None or one == other:
        return other
    if isinstance(one, dict) and isinstance(other, dict):
        bare_one = {k.rstrip("?"): (k, v) for k, v in one.items()}
        bare_other = {k.rstrip("?"): (k, v) for k, v in other.items()}
        merged = {}
        for name in sorted({*bare_one, *bare_other}):
            (a, x), (b, y) = bare_one.get(name, ("?", None)), bare_other.get(name, ("?", None))
            sure = not a.endswith("?") and not b.endswith("?")
            merged[name if sure else f"{name}?"] = union(x, y) if x is not None else y
            if y is None:
                merged[name if sure else f"{name}?"] = x
        return merged
    if isinstance(one, list) and isinstance(other, list):
        parts = [*one, *other]
        return [] if not parts else [union(parts[0], parts[-1])]
    words = set()
    for part in (one, other):
        words |= set(part.split("|")) if isinstance(part, str) else {json.dumps(part)}
    return "|".join(sorted(words))


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part, name)
    else:
        yield name, value


def hold(found: dict[str, Any]) -> None:
    """Compares with the file what commands said: schema -> shape. A kind more than the file has
    is a change; one less (null here, text there) is another machine."""
    kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get(RENEW):
        for name, told in found.items():
            old = kept.get(name)
            kept[name] = union(old, told) if name in RENEWED or _same(old, told) else told
        RENEWED.update(found)
        GOLDEN.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    for name, told in found.items():
        assert name in kept, f"{name} is new. {RENEW}=1 pytest {Path(__file__).name}, and say why"
        assert union(kept[name], told) == kept[name], (name, told)


def _same(kept: Any, told: Any) -> bool:
    """Whether the old entry is of the same fields, so that its other kinds stay true."""
    if not isinstance(kept, dict) or not isinstance(told, dict):
        return True
    return {k.rstrip("?") for k in kept} == {k.rstrip("?") for k in told} and all(
        _same(part, told.get(key, part)) for key, part in kept.items()
    )


class Told:
    """The answers of commands by their schema, each looked at as it comes."""

    def __init__(self, cli: Cli) -> None:
        self._cli = cli
        self.found: dict[str, Any] = {}

    def ask(self, *words: str, code: int | None = 0) -> list[Any]:
        said = self._cli(*words, "--json")
        assert code is None or said.code == code, (words, said.err)
        objects = [json.loads(line) for line in said.out.splitlines()]
        assert objects, (words, said.err)
        for told in objects:
            name = told["schema"]
            assert re.fullmatch(r"appliance\.[a-z.-]+/\d+", name), words
            for key, value in leaves(told):
                check_leaf(key, value, words)
            self.found[name] = union(self.found.get(name), shape(told))
        return objects


def check_leaf(key: str, value: Any, words: tuple[str, ...]) -> None:
    """Sizes are whole bytes, durations seconds as float, times ISO 8601 in UTC; no figure is put
    into words."""
    if value is None:
        return
    if key.endswith("_bytes"):
        assert type(value) is int, (words, key, value)
    if key.endswith("_s") and not key.startswith(("tok", "gen_tok", "keep_alive")):
        assert type(value) is float, (words, key, value)
    if key in ("at", "modified", "used", "since", "created", "started_at", "date_time"):
        assert TIME.fullmatch(str(value)), (words, key, value)
    assert not (isinstance(value, str) and FOR_PEOPLE.fullmatch(value)), (words, key, value)


@pytest.fixture
def told(cli: Cli) -> Iterator[Told]:
    """Holds what was told against the file when the test is through."""
    answers = Told(cli)
    yield answers
    hold(answers.found)


@pytest.fixture
def home(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the hub's cache, a log, and folders of our own for what is installed."""
    monkeypatch.setattr(prepare, "detect", lambda: HardwareSnapshot(8, 64 << 30, 60 << 30))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own_home / "xdg"))
    folder = own_home / "hf/hub/models--org--tiny/snapshots/c0ffee"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "tokenizer.json").write_text("{}")
    log = paths.supervisor_log("default")
    log.parent.mkdir(parents=True)
    log.write_text("2026-11-20T12:00:01.000Z INFO    engine-0 hello\n    and more\n")
    return own_home


def test_where_nothing_runs(told: Told, home: Path) -> None:
    for words in (
        (),
        ("version",),
        ("version", "--check"),
        ("ps", "-a"),
        ("down",),
        ("logs",),
        ("list",),
        ("show", "org/tiny"),
        ("show", "org/tiny", "--files", "--template", "--config"),
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
        ("kernels", "build", "--set", "engine.device=cpu"),
        ("service", "install", "--print"),
        ("completion", "bash"),
        ("explain",),
        ("explain", "APL-FIT-001"),
        ("up", "--dry-run", "--profile", "cpu"),
        ("up", "--dry-run", "--assume-gpus", "h100x2"),
        ("top", "--demo", "--once"),
        ("key", "add", "alice", "--admin"),
        ("key", "list"),
        ("key", "revoke", "alice"),
    ):
        told.ask(*words)
    told.ask("status", code=3)
    told.ask("doctor", "--for", "appliance-default", code=None)
    told.ask("up", "no/such", code=4)
    told.ask("rm", "org/tiny", "-y")


def test_of_a_live_run(told: Told, live: Path) -> None:
    for words in (
        ("status",), ("ps",), (), ("logs",), ("top", "--once"), ("events",), ("restart",),
        ("reload", "--set", "log_level=debug", "--set", "schedule.policy=lpm"),
        ("reload", "--set", "engine.tp=2"), ("down", "-t", "1"),
    ):  # fmt: skip
        told.ask(*words)


def test_of_answers(told: Told, url: str) -> None:
    told.ask("run", "hello", "--url", url)
    told.ask("chat", "hello", "--url", url, "--no-stream")
    told.ask("complete", "hello", "--url", url, "--logprobs", "1")


def test_of_a_pull(told: Told, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub() as hub:
        hub.hf["org/tiny"] = Repo(tiny_model())
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        told.ask("pull", "org/tiny", "--dry-run")
        told.ask("pull", "org/tiny")
        told.ask("pull", "org/tiny", "--offline")
        told.ask("list")
        told.ask("show", "org/tiny", "--fit")
        told.ask("rm", "org/tiny", "-y")


def test_of_the_service(told: Told, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = home / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text("#!/bin/sh\necho ActiveState=active\n")
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    told.ask("service", "install")
    told.ask("service", "status")
    told.ask("service", "uninstall")
    assert service.unit_path("default").parent.is_relative_to(home)


def test_every_command_is_asked() -> None:
    """The rest of this file, read as words; what cannot be asked here says where it is."""
    elsewhere = {
        "bench": "tests/bench",
        "profile tune": f"{tune_module.__name__}: tests/cli/test_cli_profile.py",
    }
    source = Path(__file__).read_text()
    for word in main.COMMANDS:
        assert word in elsewhere or f'"{word}"' in source, word
    assert keys.PREFIX not in GOLDEN.read_text()
