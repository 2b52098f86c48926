"""explain, connect, completion, cache and service: what is told, and what is left alone."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from on_terminal import on_terminal

from appliance.cli import service
from appliance.cli.catalogue import CATALOGUE
from appliance.cli.connect import CLIENTS
from appliance.hub.layout import PARTIAL, layout_of
from appliance.supervisor.notify import Notifier

Cli = Callable[..., Any]
TREE = Path(__file__).parents[2] / "appliance"


def test_every_code_of_the_tree_is_explained() -> None:
    used = {
        code
        for path in TREE.rglob("*.py")
        for code in re.findall(r"APL-[A-Z]+-\d{3}", path.read_text())
    }
    unknown = used - set(CATALOGUE) - {"APL-FIT-002"}  # the docstring's example
    assert not unknown, "add them to appliance/cli/catalogue.py"
    for code, entry in CATALOGUE.items():
        assert all(entry), code
        assert list(CATALOGUE) == sorted(CATALOGUE)


def test_explain(cli: Cli) -> None:
    assert "does not fit" in cli("explain", "apl-fit-001").out
    assert "does not fit" in cli("explain", "FIT-001").out
    told = json.loads(cli("explain", "APL-BSY-001", "--json").out)
    assert told["schema"] == "appliance.code/1" and told["fix"]
    assert len(json.loads(cli("explain", "--json").out)["codes"]) == len(CATALOGUE)
    said = cli("explain", "APL-FIT-0001")
    assert said.code == 4 and "Did you mean 'APL-FIT-001'" in said.err


@pytest.mark.parametrize("client", CLIENTS)
def test_connect_prints_a_snippet_that_reads(cli: Cli, client: str) -> None:
    said = cli("connect", client, "--url", "http://127.0.0.1:9000/v1/", "--model", "m", "--json")
    told = json.loads(said.out)
    assert told["url"] == "http://127.0.0.1:9000" and "http://127.0.0.1:9000" in told["text"]
    text = told["text"]
    if client in ("openai", "langchain", "litellm"):
        ast.parse(text)
    elif client == "codex":
        provider = tomllib.loads(text)["model_providers"]["appliance"]
        assert provider["wire_api"] == "responses"
    elif client == "claude-code":
        assert "/v1" not in text
        subprocess.run(["bash", "-n", "-c", text], check=True)
    elif client == "open-webui":
        subprocess.run(["bash", "-n", "-c", text], check=True)


def test_connect_where_nothing_runs(cli: Cli) -> None:
    said = cli("connect", "openai")
    assert "http://127.0.0.1:8000/v1" in said.out and "Nothing runs" in said.err
    assert "codex" in cli("connect").out
    said = cli("connect", "codx")
    assert said.code == 2 and "Did you mean 'codex'" in said.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(cli: Cli, shell: str, own_home: Path, monkeypatch: Any) -> None:
    said = cli("completion", shell)
    assert said.code == 0 and "_APPLIANCE_COMPLETE" in said.out
    monkeypatch.setenv("HOME", str(own_home))
    told = json.loads(cli("completion", shell, "--install", "--json").out)
    assert Path(told["path"]).read_text().strip() == said.out.strip()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("appliance prof", "profile"),
        ("appliance profile show h100x8-b", "h100x8-bf16"),
        ("appliance up --profile cpu-l", "cpu-large"),
        ("appliance explain APL-BUG", "APL-BUG-001"),
        ("appliance connect claude", "claude-code"),
        ("appliance status oth", "other"),
        ("appliance show org/", "org/tiny"),
        ("appliance config get schedule.ch", "schedule.chunk"),
        ("appliance up --set engine.memory_f", "engine.memory_fraction="),
        ("appliance up --assume-gpus h200x4", "h200x4"),
        ("appliance bench --prese", "--preset"),
        ("appliance bench --preset smo", "smoke"),
    ],
)
def test_completion_offers_names(own_home: Path, typed: str, offered: str) -> None:
    (own_home / "runtime" / "other").mkdir(parents=True)
    (own_home / "runtime" / "other" / "lock").touch()
    (own_home / "hf/hub/models--org--tiny/snapshots/abc").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "appliance"],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "_APPLIANCE_COMPLETE": "bash_complete",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split(" ")) - 1),
        },
    )
    assert done.stderr == ""
    words = [line.partition(",")[2] for line in done.stdout.splitlines()]
    assert words == [offered]


def test_completion_knows_no_empty_words_and_no_halved_sentences(own_home: Path) -> None:
    told = {}
    for typed in ("appliance logs --level ", "appliance profile "):
        asked = {"_APPLIANCE_COMPLETE": "zsh_complete", "COMP_WORDS": typed, "COMP_CWORD": "3"}
        asked["COMP_CWORD"] = str(typed.count(" "))
        done = subprocess.run(
            [sys.executable, "-m", "appliance"],
            capture_output=True,
            text=True,
            env=os.environ | asked,
        )
        lines = done.stdout.splitlines()
        told |= dict(zip(lines[1::3], lines[2::3], strict=True))
    assert {"debug", "error", "tune", "list"} <= told.keys() and "" not in told
    assert told["tune"].endswith("write what won as a profile.")
    assert not any(text.endswith("...") for text in told.values())


SHELLS = {
    "bash": ["--rcfile", "RC", "-i"],
    "zsh": ["-d", "-i"],
    "fish": ["--no-config", "-i", "-C", "source RC"],
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_completes(cli: Cli, own_home: Path, shell: str) -> None:
    """Typed on a terminal; a shell that is not here is passed over."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    script = own_home / ".zshrc"
    begin = "autoload -Uz compinit && compinit -u\n" if shell == "zsh" else ""
    script.write_text(begin + cli("completion", shell).out)
    words = [word.replace("RC", str(script)) for word in SHELLS[shell]]
    folder = str(Path(sys.executable).parent)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "ZDOTDIR": str(own_home),
        "HOME": str(own_home),
        "PS1": "$ ",
    }
    with on_terminal([program, *words], **environment) as terminal:
        terminal.keys("echo rea''dy\r")
        terminal.sees("ready")
        terminal.keys("appliance connect cla\t")
        terminal.sees("claude-code")
        terminal.keys("\x15appliance explain APL-BU\t")
        terminal.sees("APL-BUG-001")


PARTICULAR = {
    "NotFoundError", "NotAuthorisedError", "NetworkError", "IntegrityError", "BusyError",
}  # fmt: skip


def test_a_code_means_one_thing() -> None:
    """Classes whose first code is of one cause: whoever raises one for another says which."""
    unsaid = [
        f"{path.relative_to(TREE)}:{node.lineno}"
        for path in TREE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in PARTICULAR
        and not any(keyword.arg == "code" for keyword in node.keywords)
    ]
    assert not unsaid


def test_codes_of_what_is_no_model(cli: Cli, tmp_path: Path) -> None:
    for words, code in (
        (("key", "revoke", "bob"), "APL-NOT-019"),
        (("bench", "compare", str(tmp_path / "a"), str(tmp_path / "b")), "APL-NOT-018"),
        (("top", "--replay", str(tmp_path / "no")), "APL-NOT-018"),
        (("rm", "org/none", "-y"), "APL-NOT-001"),
        (("run", "hi", "--url", "http://127.0.0.1:9"), "APL-NET-005"),
        (("top", "--once", "--url", "http://127.0.0.1:9"), "APL-NET-005"),
    ):
        told = json.loads(cli(*words, "--json").out)["error"]
        assert told["code"] == code, words
    assert cli("top", "--once", "--url", "http://127.0.0.1:9").code == 3


def test_completion_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from appliance.cli import completion, main\n"
        "for word in main.COMMANDS:\n"
        "    main.group.get_command(main.click.Context(main.group), word)\n"
        "list(completion.profile_names()), list(completion.run_names()), completion.code_names()\n"
        "heavy = {'torch', 'transformers', 'fastapi', 'uvicorn', 'textual',"
        " 'modelscope', 'pynvml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "list(completion.model_names())\n"
        "assert not {'torch', 'transformers', 'modelscope'} & set(sys.modules)\n"
    )
    environment = os.environ | {"_APPLIANCE_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def cached(own_home: Path, content: bytes, name: str = "") -> Path:
    """A model of one file in Hugging Face's layout; `name`: its blob's, else the right digest."""
    repo = own_home / "hf/hub/models--org--tiny"
    blob = repo / "blobs" / (name or hashlib.sha256(content).hexdigest())
    folder = repo / "snapshots" / "c0ffee"
    for parent in (blob.parent, folder):
        parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    (folder / "model.safetensors").symlink_to(blob)
    return repo


def test_cache_df_counts_models_and_parts(cli: Cli, own_home: Path) -> None:
    repo = cached(own_home, b"x" * 1000)
    (repo / "blobs" / f"abc{PARTIAL}").write_bytes(b"y" * 10)
    places = {p["what"]: p for p in json.loads(cli("cache", "df", "--json").out)["places"]}
    assert places["models of hf"]["size_bytes"] == 1000
    assert places["unfinished of hf"]["size_bytes"] == 10
    assert "models of hf" in cli("cache", "df").out


def test_prune_takes_unfinished_downloads_only(cli: Cli, own_home: Path) -> None:
    repo = cached(own_home, b"x")
    part = repo / "blobs" / f"abc{PARTIAL}"
    part.write_bytes(b"y" * 10)
    assert cli("cache", "prune").code == 2 and part.exists()
    assert json.loads(cli("cache", "prune", "--dry-run", "--json").out)["freed_bytes"] == 10
    assert "nothing" in cli("cache", "prune", "--older-than", "1d", "--yes").out
    lock = layout_of("hf", "org/tiny", "c0ffee").lock
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        assert "nothing" in cli("cache", "prune", "--yes").out  # it is being pulled
    assert part.exists()
    assert cli("cache", "prune", "--yes").code == 0
    assert not part.exists() and (repo / "snapshots/c0ffee/model.safetensors").exists()
    assert cli("cache", "prune", "--older-than", "soon").code == 2


def test_prune_kernels(cli: Cli, own_home: Path) -> None:
    kernel = own_home / "cache" / "kernels" / "a.so"
    kernel.parent.mkdir(parents=True)
    kernel.write_bytes(b"z" * 5)
    assert json.loads(cli("cache", "prune", "--kernels", "--yes", "--json").out)["files"] == 1
    assert not kernel.exists()


def test_verify_finds_changed_bytes(cli: Cli, own_home: Path) -> None:
    repo = cached(own_home, b"as they were")
    for name in ("config.json", "tokenizer.json"):
        (repo / "snapshots/c0ffee" / name).write_text("{}")
    told = json.loads(cli("cache", "verify", "--json").out)
    assert told["ok"] and [f["verdict"] for f in told["files"]] == ["unknown", "ok", "unknown"]


def test_verify_names_what_is_changed_or_lost(cli: Cli, own_home: Path) -> None:
    good = hashlib.sha1(b"blob 4\0good", usedforsecurity=False).hexdigest()
    repo = cached(own_home, b"evil", good)
    (repo / "snapshots/c0ffee/config.json").symlink_to(repo / "blobs/none")
    said = cli("cache", "verify", "org/tiny")
    assert said.code in (4, 9)
    said = cli("cache", "verify")
    assert said.code == 9 and "model.safetensors is changed" in said.out
    assert "config.json is missing" in said.out and "appliance pull org/tiny" in said.out


def test_unit_is_whole(cli: Cli, own_home: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HOME", "/data/100% mine")
    said = cli("service", "install", "org/m", "--print", "--port", "9", "--set", "engine.tp=2")
    assert said.code == 0
    for line in ("Type=notify", "WatchdogSec=30", "KillMode=mixed", "TimeoutStopSec=90",
                 "Restart=on-failure", "RestartPreventExitStatus=2 4 7 8 9",
                 'Environment="HF_HOME=/data/100%% mine"'):  # fmt: skip
        assert line in said.out
    assert "-m appliance up org/m --name default --port 9 --set engine.tp=2" in said.out
    assert f"ExecReload={sys.executable} -m appliance reload default\n" in said.out
    assert not service.unit_path("default").is_relative_to(own_home) or not list(
        own_home.rglob("*.service")
    )


SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$2" in show) printf 'ActiveState=%s\\nSubState=running\\nMainPID=7\\n' "$STATE";; esac
"""


def test_service_life(cli: Cli, own_home: Path, monkeypatch: Any) -> None:
    programs = own_home / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text(SYSTEMCTL)
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(own_home / "calls"))
    monkeypatch.setenv("STATE", "active")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own_home / "xdg"))
    assert cli("service", "status").code == 4
    assert cli("service", "install", "--name", "b").code == 0
    unit = own_home / "xdg/systemd/user/appliance-b.service"
    assert "--name b" in unit.read_text()
    assert "active (running)" in cli("service", "status", "--name", "b").out
    monkeypatch.setenv("STATE", "failed")
    assert cli("service", "status", "--name", "b").code == 3
    assert cli("service", "uninstall", "--name", "b").code == 0 and not unit.exists()
    calls = (own_home / "calls").read_text()
    assert "--user start --no-block appliance-b.service" in calls
    assert "--user disable --now appliance-b.service" in calls


def test_service_without_systemd(cli: Cli, own_home: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", str(own_home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(own_home / "xdg"))
    said = cli("service", "install")
    assert said.code == 8 and "--print" in said.err
    assert not (own_home / "xdg").exists()


def test_watchdog_is_fed_only_where_one_watches(monkeypatch: Any) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    told: list[dict[str, str]] = []
    notifier = Notifier()
    monkeypatch.setattr(notifier, "tell", lambda **fields: told.append(fields))
    notifier.alive()
    notifier.alive()
    assert told == [{"WATCHDOG": "1"}]
    monkeypatch.delenv("WATCHDOG_USEC")
    silent = Notifier()
    monkeypatch.setattr(silent, "tell", lambda **fields: told.append(fields))
    silent.alive()
    assert len(told) == 1
