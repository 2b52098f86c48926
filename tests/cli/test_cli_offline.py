"""A start where there is no network: from the model's name to an answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_stage import write_tiny

BOX = [sys.executable, str(Path(__file__).with_name("offline_box.py"))]
SCRIPT = """
import socket, sys
from appliance.cli.main import run
try:
    socket.create_connection(("192.0.2.1", 80), 1)
    sys.exit("there is a network")
except OSError:
    pass
rc = run(["up", "org/tiny", "--load-format", "dummy", "--port", "0", "-d", "--wait=120"])
if rc == 0:
    rc = run(["run", "hello", "--max-tokens", "3", "--temperature", "0", "--json"])
    rc = run(["down", "-t", "5"]) or rc
sys.exit(rc)
"""


def pulled(home: Path) -> None:
    """As the hub's own tools lay a model down."""
    repo = home / "hf" / "hub" / "models--org--tiny"
    commit = "c" * 40
    (repo / "snapshots").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    made = write_tiny(home / "made")
    folder = repo / "snapshots" / commit
    shutil.move(made, folder)
    from safetensors.numpy import save_file

    save_file({}, folder / "model.safetensors")


@pytest.mark.slow
def test_a_start_asks_nobody(own_home: Path) -> None:
    pulled(own_home)
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE",)}
    done = subprocess.run(
        [*BOX, sys.executable, "-c", SCRIPT],
        env=environment, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("no network namespace may be made here")
    assert done.returncode == 0, done.stderr
    _, answer, stopped = done.stdout.splitlines()
    assert json.loads(answer)["usage"]["completion_tokens"] >= 1 and stopped == "default: stopped"
