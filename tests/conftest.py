"""Shared by all tests: where helpers lie, and what a GPU test needs."""

from __future__ import annotations

import shutil
import signal
import sys
from functools import cache
from pathlib import Path

import httpx._transports.default as httpx_transport
import pytest
from hypothesis import settings

# The suite tries the same cases each time and however slowly: `--hypothesis-profile=explore` finds
# new ones.
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("suite")

# Each client of httpx reads all certificate authorities anew, which takes most of a short test.
httpx_transport.create_ssl_context = cache(httpx_transport.create_ssl_context)

sys.path.insert(0, str(Path(__file__).parent.parent))


def pytest_configure(config: pytest.Config) -> None:
    """A suite started in the background inherits ignored signals, and so would what it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """GPU tests are skipped where no NVIDIA driver is installed."""
    if shutil.which("nvidia-smi"):
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
