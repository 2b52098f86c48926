"""The end of the terminal is the end of the dashboard, also where no SIGHUP tells it."""

from __future__ import annotations

import os
import select
import threading

_EXIT = 129
"""As a shell tells a death by SIGHUP."""


def end_with_terminal(fd: int) -> None:
    """Ends this process when the terminal behind `fd` has gone. Costs nothing until then."""

    def watch() -> None:
        poll = select.poll()
        poll.register(fd, 0)  # nothing is asked for: a hang-up is always told
        poll.poll()
        os._exit(_EXIT)

    threading.Thread(target=watch, name="terminal", daemon=True).start()
