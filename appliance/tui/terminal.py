"""What this terminal can draw, and its end: that of the dashboard, also where no SIGHUP tells."""

from __future__ import annotations

import locale
import os
import select
import threading

_EXIT = 129
"""As a shell tells a death by SIGHUP."""


def draws_ascii_only() -> bool:
    """The locale knows no more, or the console's font does. Python takes the locale C for UTF-8,
    which nobody means who sets it."""
    if os.environ.get("LC_ALL") in ("C", "POSIX") or os.environ.get("TERM") == "linux":
        return True
    return "utf" not in locale.getpreferredencoding(False).lower()


def end_with_terminal(fd: int) -> None:
    """Ends this process when the terminal behind `fd` has gone. Costs nothing until then."""

    def watch() -> None:
        poll = select.poll()
        poll.register(fd, 0)  # nothing is asked for: a hang-up is always told
        poll.poll()
        os._exit(_EXIT)

    threading.Thread(target=watch, name="terminal", daemon=True).start()
