"""A fake hub, and an environment in which nothing outside of it exists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakehub import FakeHub, Repo, tiny_model
from pulling import Puller


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as fake:
        yield fake


@pytest.fixture
def env(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Both hubs' variables, set here and returned for subprocesses."""
    for name in list(os.environ):
        if name.startswith(("HF_", "MODELSCOPE_", "HUGGING", "APPLIANCE_")):
            monkeypatch.delenv(name)
    ours = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "MODELSCOPE_ENDPOINT": hub.url,
        "MODELSCOPE_CACHE": str(tmp_path / "ms"),
        "MODELSCOPE_HOME": str(tmp_path / "ms-home"),
        "APPLIANCE_STATE_DIR": str(tmp_path / "state"),
        "APPLIANCE_RUNTIME_DIR": str(tmp_path / "run"),
        "APPLIANCE_CONFIG_DIR": str(tmp_path / "config"),
        "NO_PROXY": "127.0.0.1,localhost",
        "HOME": str(tmp_path / "home"),
    }
    # Waiting for this machine's disk would be half of the suite's time; test_hub_pull shows that
    # the calls are made, and when.
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


@pytest.fixture(params=["hf", "modelscope"])
def puller(hub: FakeHub, env: dict[str, str], request: pytest.FixtureRequest) -> Puller:
    repo = Repo(tiny_model())
    hub.hf["org/tiny"] = hub.modelscope["org/tiny"] = repo
    return Puller(hub, request.param, repo.files)


@pytest.fixture
def hf(hub: FakeHub, env: dict[str, str]) -> Puller:
    hub.hf["org/tiny"] = Repo(tiny_model())
    return Puller(hub, "hf", hub.hf["org/tiny"].files)
