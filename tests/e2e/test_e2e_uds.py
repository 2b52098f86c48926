"""A run on a Unix socket, asked by clients that people use."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from stand import Stand, until


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand("--uds", "HOME/llm.sock") as one:
        yield one


def ask(path: Path) -> str:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as http:
        client = openai.OpenAI(base_url="http://localhost/v1", api_key="-", http_client=http)
        answer = client.chat.completions.create(
            model="default", temperature=0, messages=[{"role": "user", "content": "Who are you?"}]
        )
    return str(answer.choices[0].message.content)


@pytest.mark.slow
def test_a_run_on_a_socket(stand: Stand) -> None:
    path = stand.home / "llm.sock"
    status = stand.status()
    assert status.uds == str(path) and status.url.startswith("http+unix://")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = ask(path)
    assert "appliance" in first
    # our own commands find it by the run's name and by its path
    assert stand.cli_json("run", "Who are you?", "--temperature", "0")["text"] == first
    asked = stand.cli_json("run", "Who are you?", "--url", f"unix:{path}", "--temperature", "0")
    assert asked["text"] == first
    assert stand.cli_json("version", "--check")["ok"]
    shot = stand.cli("bench", "serve", "--num-prompts", "3", "--output-len", "4")
    assert shot.returncode == 0, shot.stderr
    assert stand.cli("top", "--url", f"unix:{path}", "--once").returncode == 0
    # what status prints can be typed
    line = next(x for x in stand.cli("status").stdout.splitlines() if x.startswith("  curl "))
    if shutil.which("curl"):
        said = subprocess.run(shlex.split(line), capture_output=True, text=True, check=True)
        assert json.loads(said.stdout)["object"] == "list"
    # a second run may not have it, and nothing happens to the first
    other = stand.cli("up", "--name", "other", "--uds", str(path), "-d")
    assert other.returncode == 11 and "APL-BSY-004" in other.stderr
    # a frontend that comes back accepts on the same socket
    stand.strike("frontend", signal.SIGKILL)
    until(lambda: stand.status().state == "ready" and ask(path) == first, "it answers again")
    # a supervisor that was killed leaves the file, and the next one takes its place
    stand.strike("supervisor", signal.SIGKILL)
    assert path.exists()
    again = stand.cli("up", "--uds", str(path), "-d", "--wait=120")
    assert again.returncode == 0, again.stderr
    assert ask(path) == first
    assert stand.cli("down").returncode == 0
    assert not path.exists()
