"""Every test has its own state and runtime folders, and a logger that forgets its handlers."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="apl"))
    monkeypatch.setenv("APPLIANCE_STATE_DIR", str(home / "state"))
    monkeypatch.setenv("APPLIANCE_RUNTIME_DIR", str(home / "run"))
    monkeypatch.setenv("APPLIANCE_CONFIG_DIR", str(home / "config"))
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    yield home
    logging.getLogger().handlers = handlers
    logging.getLogger().setLevel(level)
    shutil.rmtree(home, ignore_errors=True)
