"""Ctrl-C is heard once, wherever it comes. Times here are guards against hanging."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "interrupted.py"


def begun(way: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), way],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )


@pytest.mark.parametrize(
    "way",
    [
        "in_a_finalizer",
        "in_a_callback",
        "in_a_swallower",
        "in_a_table_in_c",
        "in_a_call_without_end",
    ],
)
def test_what_python_loses_is_sent_again(way: str) -> None:
    child = begun(way)
    stdout, stderr = child.communicate(timeout=20)
    assert child.returncode == 130, stderr
    assert (stdout, stderr) == ("", "stopped by Ctrl-C\n")


AS_FIRST = """
import os, signal, threading
from appliance.cli import interrupt
own, os.getpid = os.getpid(), lambda: 1
def command():
    print(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, flush=True)
    os.kill(own, signal.SIGTERM)
    threading.Event().wait(60)
interrupt.answering(command)
"""


def test_a_containers_first_process_ends_before_it_serves() -> None:
    """It would hear no SIGTERM but by a handler of its own."""
    done = subprocess.run([sys.executable, "-c", AS_FIRST], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "True\n", "")


def test_cleaning_up_is_not_cut_off() -> None:
    child = begun("in_time_to_clean")
    stdout, stderr = child.communicate(timeout=20)
    assert (child.returncode, stdout, stderr) == (130, "cleaned\n", "stopped by Ctrl-C\n")


def test_a_command_may_go_on() -> None:
    child = begun("in_a_conversation")
    assert child.communicate(timeout=20) == ("", "") and child.returncode == 7


def test_a_second_one_ends_what_does_not_end() -> None:
    child = begun("in_endless_cleaning")
    assert child.stdout is not None and child.stdout.readline() == "cleaning\n"
    time.sleep(0.5)  # the second press of a finger, not an echo of the first
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=20)
    assert (child.returncode, stderr) == (130, "stopped by Ctrl-C\n")


def test_it_is_heard_while_modules_are_loaded() -> None:
    """A module that is slow to load, in the place of click."""
    code = (
        "import sys, os, signal, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click':\n"
        "            os.kill(os.getpid(), signal.SIGINT); time.sleep(30)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "import runpy; sys.argv = ['appliance', 'list']\n"
        "runpy.run_module('appliance', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by Ctrl-C\n")
