"""In a real terminal: tmux draws, keys are sent, the screen is read back."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import fakecontrol
import pytest

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
