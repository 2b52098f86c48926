"""The command line, with an interrupt that Python loses in one phase of a pull:
`interrupted_pull.py PHASE pull MODEL …`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from appliance.cli import interrupt

PHASES = {
    # what the main thread runs there, as module, class and name
    "ask": ("appliance.hub.plan", "", "parse_name"),
    "config": ("appliance.hub.plan", "", "_config"),
    "close": ("appliance.hub.fetch", "Fetcher", "close"),
    "fit": ("appliance.cli.pull", "", "fits"),
    "begin": ("appliance.hub.pull", "", "look"),
    "download": ("appliance.hub.pull", "_Work", "_progress"),
    "verify": ("appliance.hub.pull", "_Work", "_keep"),
}


class Dying:
    """What Python raises in a finalizer goes nowhere."""

    def __del__(self) -> None:
        sys.stderr.write("interrupted in this phase\n")
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            """Here Python looks for signals."""


def arm(phase: str) -> None:
    module, kind, name = PHASES[phase]
    __import__(module)
    holder: Any = vars(sys.modules[module])[kind] if kind else sys.modules[module]
    whole, waiting = vars(holder)[name], [Dying()]

    def armed(*args: Any, **more: Any) -> Any:
        waiting.clear()
        return whole(*args, **more)

    setattr(holder, name, armed)


def command() -> int:
    from appliance.cli.main import run

    arm(sys.argv[1])
    return run(sys.argv[2:])


if __name__ == "__main__":
    interrupt.answering(command)
