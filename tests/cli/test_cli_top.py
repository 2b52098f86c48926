"""appliance top without a terminal: once, streams, recordings, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tui"))

import fakecontrol

from appliance import paths


def top(*words: str, runtime: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance", "top", *words],
        capture_output=True, text=True, timeout=60, check=False,
        env=None if runtime is None else {"APPLIANCE_RUNTIME_DIR": str(runtime), "PATH": ""},
    )  # fmt: skip


def lines_of(count: int, *words: str, runtime: Path | None = None) -> list[dict]:
    """The first lines of a stream, which is then ended by Ctrl-C."""
    env = None if runtime is None else {"APPLIANCE_RUNTIME_DIR": str(runtime), "PATH": ""}
    command = [sys.executable, "-m", "appliance", "--json", "top", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(count)]
        process.send_signal(2)
        assert process.wait(20) == 130
    return lines


def test_demo_once() -> None:
    done = top("--demo", "--once")
    assert done.returncode == 0 and done.stdout.startswith("READY  ")
    assert top("--demo", "--once", "--ascii").stdout.isascii()
    plain = json.loads(top("--demo", "--once", "--json").stdout)
    assert (plain["schema"], plain["run"]) == ("appliance.top/1", "demo")


def test_a_stream_gives_the_history_once() -> None:
    first, second = lines_of(2, "--demo", "--interval", "0.25")
    assert len(first["history"]["gen_tok_s"]) == 900
    assert len(second["history"]["gen_tok_s"]) <= 2


@pytest.mark.parametrize("state, code", [("ready", 0), ("starting", 3), ("failed", 3)])
def test_once_is_a_probe(tmp_path_factory, state: str, code: int) -> None:
    runtime = tmp_path_factory.mktemp("r")
    control = paths.control_socket(runtime / "default")
    control.parent.mkdir()
    with fakecontrol.serving(control, fakecontrol.snapshot(state=state)):
        assert top("--once", runtime=runtime).returncode == code
    assert top("--once", runtime=runtime).returncode == 3


def test_a_record_of_a_stream_can_be_replayed(tmp_path_factory) -> None:
    runtime = tmp_path_factory.mktemp("r")
    control = paths.control_socket(runtime / "default")
    control.parent.mkdir()
    file = runtime / "frames"
    with fakecontrol.serving(control, fakecontrol.snapshot()):
        lines_of(3, "--interval", "0.25", "--record", str(file), runtime=runtime)
    assert len(file.read_text().splitlines()) >= 4
    done = top("--replay", str(file), "--once")
    assert done.returncode == 0 and "11,263" in done.stdout


@pytest.mark.parametrize(
    "words, code",
    [
        (["--demo", "--replay", "x"], 2),
        (["--replay", "/nonexistent"], 4),
        (["--interval", "0.01"], 2),
        (["other"], 4),
    ],
)
def test_wrong_words(words: list[str], code: int, tmp_path: Path) -> None:
    done = top(*words, runtime=tmp_path)
    assert done.returncode == code and "fix" in done.stderr + "fix" * (code == 2)
