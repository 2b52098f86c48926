"""In a real terminal: a pty of our own, and tmux, which draws what can be read back."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import fakecontrol
import pytest
from on_terminal import OnTerminal, on_terminal

from appliance.tui.source import read_recording

HERE = Path(__file__).parent
TMUX = shutil.which("tmux")


class Terminal:
    """One tmux server of its own, 80×24."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "tmux"

    def tmux(self, *words: str) -> str:
        done = subprocess.run(
            [str(TMUX), "-S", str(self._socket), "-f", "/dev/null", *words],
            capture_output=True, text=True, timeout=20,
            env={**os.environ, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        return done.stdout

    def sees(self, *wanted: str) -> str:
        """The pane, as soon as all the words stand in it."""
        pane = ""
        for _ in range(300):
            pane = self.tmux("capture-pane", "-p")
            if all(word in pane for word in wanted):
                return pane
            threading.Event().wait(0.05)
        raise AssertionError(f"{wanted} did not come; the pane shows:\n{pane}")


@pytest.mark.skipif(TMUX is None, reason="tmux is not installed")
@pytest.mark.slow
def test_in_tmux_keys_work_and_q_gives_the_terminal_back(tmp_path):
    control = tmp_path / "control.sock"
    terminal = Terminal(tmp_path)
    with fakecontrol.serving(control, fakecontrol.snapshot()) as server:
        terminal.tmux("-u", "new-session", "-d", "-x", "80", "-y", "24", "sh")
        try:
            command = f"echo before; {sys.executable} {HERE / 'drivetop.py'} {control}; echo rc=$?"
            terminal.tmux("send-keys", "-l", command)
            terminal.tmux("send-keys", "Enter")
            pane = terminal.sees("READY", "req-0003", "11,263")
            assert "before" not in pane
            assert all(len(line) <= 80 for line in pane.splitlines())
            terminal.tmux("send-keys", "g")
            terminal.sees("612", "mem GiB")
            terminal.tmux("send-keys", "g")
            server.shown = fakecontrol.snapshot(state="draining", requests=1)
            terminal.sees("DRAINING", "req-0000")
            terminal.tmux("send-keys", "q")
            pane = terminal.sees("left the dashboard", "rc=0")
            assert "DRAINING" not in pane and "before" in pane
        finally:
            terminal.tmux("kill-server")


def dashboard(*words: str, controls: bool = True, **env: str) -> AbstractContextManager[OnTerminal]:
    """`appliance top` on a terminal of 80×24."""
    command = [sys.executable, "-m", "appliance", "top", *words]
    return on_terminal(command, 80, 24, controls=controls, **env)


def test_a_pty_keys_a_new_size_and_the_terminal_is_given_back() -> None:
    with dashboard("--demo") as terminal:
        first = terminal.news("DEMO READY", "gen", "q quit")
        assert "\x1b[?1049h" in first
        terminal.keys("3")
        terminal.news("tokens/J", "GPU 1")
        terminal.resize(8, 30)
        terminal.news("needs 40")
        terminal.resize(30, 120)
        terminal.news("tokens/J")
        terminal.keys("q")
        assert "\x1b[?1049l" in terminal.rest()
        assert terminal.process.wait(20) == 0


@pytest.mark.parametrize("controls, code", [(True, -signal.SIGHUP), (False, 129)])
def test_the_dashboard_ends_with_its_terminal(controls: bool, code: int) -> None:
    with dashboard("--demo", controls=controls) as terminal:
        terminal.news("DEMO READY")
        terminal.close()
        assert terminal.process.wait(20) == code


def test_no_color_has_no_colors() -> None:
    with dashboard("--demo", NO_COLOR="1", COLORTERM="truecolor") as terminal:
        seen = terminal.news("DEMO READY", "q quit")
        colours = set(re.findall(r"[34]8;2;(\d+);(\d+);(\d+)[;m]", seen))
        assert all(red == green == blue for red, green, blue in colours)
        terminal.keys("q")
        terminal.rest()
        assert terminal.process.wait(20) == 0


def test_what_is_recorded_on_a_screen_begins_with_all_the_history(tmp_path: Path) -> None:
    control = tmp_path / "default" / "control.sock"
    control.parent.mkdir()
    shown = fakecontrol.snapshot(history={"gen_tok_s": [5.0] * 30}, history_seq=30)
    file, run = tmp_path / "frames", {"APPLIANCE_RUNTIME_DIR": str(tmp_path)}
    with fakecontrol.serving(control, shown):
        with dashboard("--record", str(file), **run) as terminal:
            terminal.news("READY", "q quit")
            terminal.keys("q")
            assert "The server keeps running" in terminal.rest()
            assert terminal.process.wait(20) == 0
    _, frames = read_recording(file)
    assert len(frames[0].history["gen_tok_s"]) == 30


def test_inline_stays_under_the_prompt() -> None:
    with dashboard("--demo", "--inline") as terminal:
        seen = terminal.news("DEMO READY", "q quit", "req-")
        assert "\x1b[?1049h" not in seen
        terminal.keys("q")
        terminal.rest()
        assert terminal.process.wait(20) == 0


def test_a_terminal_without_utf8_gets_ascii_alone() -> None:
    with dashboard("--demo", LC_ALL="C") as terminal:
        seen = terminal.news("DEMO READY", "[1 overview]")
        terminal.keys("q")
        seen += terminal.rest()
        assert terminal.process.wait(20) == 0
    assert seen.isascii()


def test_on_a_serial_line_help_scrolls_and_a_resize_is_followed() -> None:
    with dashboard("--demo", TERM="vt220") as terminal:
        terminal.news("DEMO READY", "q quit")
        terminal.resize(12, 40)
        terminal.news("hit 60s")
        terminal.keys("?")
        terminal.news("quit; the server")
        terminal.keys("\x1b[F")  # End
        terminal.news("other key", "closes it")
        terminal.keys("x")
        terminal.resize(42, 140)
        terminal.news("KV cache", "errors/min", "frontend-0")
        terminal.keys("q")
        terminal.rest()
        assert terminal.process.wait(20) == 0


@pytest.mark.parametrize("dumb", [False, True])
def test_where_nothing_can_be_drawn_one_snapshot_is_printed(dumb: bool) -> None:
    command = [sys.executable, "-m", "appliance", "top", "--demo"]
    if dumb:
        with dashboard("--demo", TERM="dumb") as terminal:
            seen = terminal.rest()
            assert terminal.process.wait(20) == 0
    else:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        seen = done.stdout
        assert "No terminal" in done.stderr
    assert "READY" in seen and "\x1b" not in seen
