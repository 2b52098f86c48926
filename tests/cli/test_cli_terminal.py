"""`up` on a terminal: its phases as they are printed, and Ctrl-C in each of them."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cli_stage import FakeModel, write_tiny
from on_terminal import on_terminal

from appliance import paths
from appliance.supervisor.claim import held
from appliance.supervisor.replica import PHASES

DRIVE = str(Path(__file__).with_name("drive_up.py"))
UP = ["--load-format", "dummy", "--port", "0"]


def up(home: Path, **told: object) -> list[str]:
    """`up` on stand-ins, which act as told."""
    model = home / "tiny"
    if not model.exists():
        write_tiny(model)
    return [sys.executable, DRIVE, json.dumps(told), "up", str(model), *UP]


@pytest.mark.slow
def test_each_phase_has_its_line_and_its_time(own_home: Path) -> None:
    model = write_tiny(own_home / "tiny")
    command = [sys.executable, "-m", "appliance", "up", str(model), *UP]
    with on_terminal(command) as terminal:
        text = terminal.sees("Checked ", "Resolved ", "Listening ", "Ready ", "appliance top")
        lines = [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]
        assert next(x for x in lines if x.startswith("Listening")).endswith("until ready)")
        phases = [x for x in lines if re.match(r"(Imported|Loaded|Planned|Captured|Warmed) ", x)]
        assert phases[0].startswith("Imported")
        assert all(re.search(r" \d+\.\ds$", line) for line in phases), phases
        assert re.search(r"Ready +in \d+\.\ds", text)
        terminal.keys("\x03")
        assert terminal.left() == 130
        assert "draining 0 request(s)" in terminal.text and "stopped in" in terminal.text
    assert not held(paths.runtime_dir() / "default")


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES[1:])
def test_ctrl_c_ends_a_start_in_any_phase(own_home: Path, phase: str) -> None:
    before = list(PHASES[1 : PHASES.index(phase) + 1])
    with on_terminal(up(own_home, phases=before, hang_in_phase=True)) as terminal:
        terminal.sees(f"{phase} 50%")
        terminal.keys("\x03")
        assert terminal.left() == 130
        assert "stopped in" in terminal.text and "Traceback" not in terminal.text
    assert not held(paths.runtime_dir() / "default")


@pytest.mark.slow
def test_an_engine_that_never_starts_is_10(own_home: Path) -> None:
    told = {"print": ["RuntimeError: no luck"], "exit": 70}
    with on_terminal(up(own_home, **told)) as terminal:
        assert terminal.left() == 10
        assert "error[APL-ENG-" in terminal.text
        assert "exited with status 70" in terminal.text and "RuntimeError: no luck" in terminal.text
        assert "Its log:" in terminal.text
    assert not held(paths.runtime_dir() / "default")


def test_a_conversation_remembers_what_was_said(url: str) -> None:
    command = [sys.executable, "-m", "appliance", "chat", "--url", url, "--system", "be brief"]
    before = len(FakeModel.asked)
    with on_terminal(command) as terminal:
        terminal.sees(">>> ")
        terminal.keys("one two\r")
        terminal.sees("two one \r\n>>> ")
        terminal.keys("three four\r")
        terminal.sees("four three \r\n>>> ")
        terminal.keys("/new\rfive six\r")
        terminal.sees("six five \r\n>>> ")
        terminal.keys("\x04")
        assert terminal.left() == 0
    told = [[m["content"] for m in body["messages"]] for body in FakeModel.asked[before:]]
    assert told == [
        ["be brief", "one two"],
        ["be brief", "one two", "two one ", "three four"],
        ["be brief", "five six"],
    ]


def test_words_of_a_conversation_are_not_sent_and_errors_do_not_end_it(url: str) -> None:
    command = [sys.executable, "-m", "appliance", "chat", "--url", url]
    before = len(FakeModel.asked)
    with on_terminal(command) as terminal:
        terminal.sees(">>> ")
        terminal.keys("/help\r")
        terminal.sees("Ctrl-C  stops an answer")
        terminal.keys("/hlep me\r")
        terminal.sees("There is no /hlep.")
        terminal.keys("//etc is a folder\r")
        terminal.sees("folder a is /etc")
        terminal.keys("loading\r")
        terminal.sees("error[APL-RUN-004]: still loading")
        terminal.keys("again\r")
        terminal.sees("again \r\n>>> ")
        terminal.keys("/bye\r")
        assert terminal.left() == 0
    told = [[m["content"] for m in body["messages"]] for body in FakeModel.asked[before:]]
    assert told[-1] == ["/etc is a folder", "folder a is /etc ", "again"]


def test_a_conversation_goes_on_after_an_answer_that_was_stopped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with on_terminal([sys.executable, "-m", "appliance", "chat", "--url", url]) as terminal:
            terminal.sees(">>> ")
            terminal.keys("hello\r")
            with silent.accept()[0]:
                terminal.keys("\x03")
                terminal.sees("(stopped)\r\n>>> ")
                # longer than an interrupt that nobody heard is waited for
                threading.Event().wait(0.4)
                terminal.keys("\x04")
                assert terminal.left() == 0


def test_the_log_as_json_lines(own_home: Path) -> None:
    child = subprocess.Popen(
        [*up(own_home, print=["Traceback (most recent call last):"]), "--json-logs"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    lines = []
    for text in child.stderr:
        if text.startswith("{"):
            lines.append(json.loads(text))
            if lines[-1]["message"].startswith("ready:"):
                child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 0 and child.communicate()[0] == ""
    assert all(set(line) == set(lines[0]) for line in lines)
    assert {line["component"] for line in lines} >= {"supervisor"}
    assert any(line["message"].startswith("Traceback") for line in lines)
