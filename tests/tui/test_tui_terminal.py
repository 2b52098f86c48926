"""In a real terminal: a pty of our own, and tmux, which draws what can be read back."""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fakecontrol
import pytest

from appliance.tui.source import read_recording

HERE = Path(__file__).parent
TMUX = shutil.which("tmux")
_COLOUR = re.compile("\x1b\\[[0-9;]*m")


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


class Pty:
    """`appliance top` on a pseudo-terminal. controls: it is the process's controlling terminal."""

    def __init__(self, *words: str, controls: bool = True, **env: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(24, 80, tell=False)

        def take() -> None:
            if controls:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "appliance", "top", *words],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=take,
            env={**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **env},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def resize(self, rows: int, columns: int, tell: bool = True) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if tell:
            self.process.send_signal(signal.SIGWINCH)

    def keys(self, text: str) -> None:
        os.write(self.master, text.encode())

    def sees(self, *wanted: str) -> str:
        """What was written since the last call, as soon as all the words are in it. Between the
        letters of a word there may be colours."""
        end = time.monotonic() + 60
        while not all(word in _COLOUR.sub("", self.seen) for word in wanted):
            if not select.select([self.master], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AssertionError(f"{wanted} did not come; there is {self.seen[-2000:]!r}")
            try:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            except OSError as gone:
                raise AssertionError(f"{wanted} did not come before the end") from gone
        found, self.seen = self.seen, ""
        return found

    def rest(self) -> str:
        """Everything until the process has closed the terminal."""
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return self.seen
            self.seen += data.decode(errors="replace")

    def close(self) -> None:
        os.close(self.master)
        self.master = -1


@contextmanager
def dashboard(*words: str, controls: bool = True, **env: str) -> Iterator[Pty]:
    terminal = Pty(*words, controls=controls, **env)
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
        terminal.process.wait()
        if terminal.master >= 0:
            terminal.close()


def test_a_pty_keys_a_new_size_and_the_terminal_is_given_back() -> None:
    with dashboard("--demo") as terminal:
        first = terminal.sees("DEMO READY", "gen", "q quit")
        assert "\x1b[?1049h" in first
        terminal.keys("3")
        terminal.sees("tokens/J", "GPU 1")
        terminal.resize(8, 30)
        terminal.sees("needs 40")
        terminal.resize(30, 120)
        terminal.sees("tokens/J")
        terminal.keys("q")
        assert "\x1b[?1049l" in terminal.rest()
        assert terminal.process.wait(20) == 0


@pytest.mark.parametrize("controls, code", [(True, -signal.SIGHUP), (False, 129)])
def test_the_dashboard_ends_with_its_terminal(controls: bool, code: int) -> None:
    with dashboard("--demo", controls=controls) as terminal:
        terminal.sees("DEMO READY")
        terminal.close()
        assert terminal.process.wait(20) == code


def test_no_color_has_no_colors() -> None:
    with dashboard("--demo", NO_COLOR="1", COLORTERM="truecolor") as terminal:
        seen = terminal.sees("DEMO READY", "q quit")
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
            terminal.sees("READY", "q quit")
            terminal.keys("q")
            assert "The server keeps running" in terminal.rest()
            assert terminal.process.wait(20) == 0
    _, frames = read_recording(file)
    assert len(frames[0].history["gen_tok_s"]) == 30


def test_inline_stays_under_the_prompt() -> None:
    with dashboard("--demo", "--inline") as terminal:
        seen = terminal.sees("DEMO READY", "q quit", "req-")
        assert "\x1b[?1049h" not in seen
        terminal.keys("q")
        terminal.rest()
        assert terminal.process.wait(20) == 0


def test_a_terminal_without_utf8_gets_ascii_alone() -> None:
    with dashboard("--demo", LC_ALL="C") as terminal:
        seen = terminal.sees("DEMO READY", "[1 overview]")
        terminal.keys("q")
        seen += terminal.rest()
        assert terminal.process.wait(20) == 0
    assert seen.isascii()


def test_on_a_serial_line_help_scrolls_and_a_resize_is_followed() -> None:
    with dashboard("--demo", TERM="vt220") as terminal:
        terminal.sees("DEMO READY", "q quit")
        terminal.resize(12, 40)
        terminal.sees("hit 60s")
        terminal.keys("?")
        terminal.sees("quit; the server")
        terminal.keys("\x1b[F")  # End
        terminal.sees("other key", "closes it")
        terminal.keys("x")
        terminal.resize(42, 140)
        terminal.sees("KV cache", "errors/min", "frontend-0")
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
