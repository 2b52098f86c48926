"""The command line in this process, with folders of its own."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_stage import live_run, model_url

from appliance.cli import main


@dataclass
class Said:
    code: int
    out: str
    err: str


Cli = Callable[..., Said]


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short, for a Unix socket's path has 107 characters."""
    home = Path(tempfile.mkdtemp(prefix="apl"))
    for name in ("STATE", "RUNTIME", "CONFIG", "CACHE"):
        monkeypatch.setenv(f"APPLIANCE_{name}_DIR", str(home / name.lower()))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(home / "ms"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    yield home
    logging.getLogger().handlers = handlers
    logging.getLogger().setLevel(level)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*words: str) -> Said:
        capsys.readouterr()
        code = main.run(words)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


@pytest.fixture
def live() -> Iterator[Path]:
    """A run of stand-ins."""
    with live_run() as run:
        yield run


@pytest.fixture
def url() -> Iterator[str]:
    """Of a server that says the words of the last message backwards."""
    with model_url() as url:
        yield url
