"""What the documents show is done: their programs, their requests, and those of their commands that
need no GPU, no network and no other model than the embedded one."""

from __future__ import annotations

import gc
import json
import os
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand import Stand

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
from documents import Block, Command, blocks, commands, pages

from appliance.cli import main

SHOWN_URL = "http://127.0.0.1:8000"
ELSEWHERE = ("path/to", "embeddings.create")
"""What a program holds that needs a model which is not here."""

HARMLESS = (
    "completion", "config path", "config show", "config validate", "connect", "explain", "list",
    "logs --level", "logs --component", "profile list", "profile show", "ps", "run",
    "status", "top --demo --once", "top --once", "version",
)  # fmt: skip
OF_OTHERS = {"night", "MODEL", "NAME", "--follow", "CODE", "CLIENT"}
"""Words of commands that speak of a run or a model that is not here, or that never end."""

WRITES = {"--write", "--install", "--bundle", "--record", "--append", "--save", "--plot"}
"""Options that write into somebody's files: their commands are parsed and not run."""


def _programs() -> Iterator[Block]:
    for page in pages():
        for block in blocks(page):
            whole = "default" in block.text or "Engine()" in block.text
            here = not any(word in block.text for word in ELSEWHERE)
            if block.language == "python" and block.checked and whole and here:
                yield block


def _harmless() -> list[Command]:
    every = {c.words: c for page in pages() for c in commands(page)}
    return [
        c for words, c in every.items()
        if " ".join(words).startswith(HARMLESS) and not (OF_OTHERS | WRITES) & set(words)
    ]  # fmt: skip


@pytest.fixture
def at_home(served: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stand:
    """This process looks at the stand's run, and at no other models or settings."""
    for name, value in served.environment.items():
        if name.startswith("APPLIANCE_") or name == "NO_COLOR":
            monkeypatch.setenv(name, value)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    return served


# A program that is shown leaves it to its end to close what it opened.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("program", _programs(), ids=lambda b: f"{b.place}:{b.line}")
def test_programs_run(
    program: Block, at_home: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "shown.py"
    file.write_text(program.text.replace(SHOWN_URL, at_home.url))
    runpy.run_path(str(file), run_name="__main__")
    gc.collect()
    assert capsys.readouterr().out  # an answer that is sampled may be an empty line


@pytest.mark.parametrize(
    "request_", [b for p in pages() for b in blocks(p) if b.text.startswith("curl ")],
    ids=lambda b: f"{b.place}:{b.line}",
)  # fmt: skip
def test_requests_are_answered(request_: Block, served: Stand) -> None:
    words = shlex.split(request_.text.replace("\\\n", " ").replace(SHOWN_URL, served.url))
    done = subprocess.run(
        [words[0], "-sS", "--fail-with-body", *words[1:]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)


@pytest.mark.parametrize("command", _harmless(), ids=lambda c: " ".join(c.words))
def test_commands_run(command: Command, at_home: Stand, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    code = main.run(command.words)
    os.environ.clear()
    os.environ.update(before)
    said = capsys.readouterr()
    assert code == 0, said.err
    if command.words[0] not in ("logs", "list") and "--quiet" not in command.words:
        assert said.out.strip()
