"""systemd's notification socket: ready, status, alive, stopping. Silent where there is none."""

from __future__ import annotations

import os
import socket
import time


class Notifier:
    """Sends to NOTIFY_SOCKET as it was when this was made."""

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        limit = os.environ.get("WATCHDOG_USEC", "")
        self._alive_every_s = int(limit) / 4e6 if limit.isdigit() else 0.0
        self._alive_at = 0.0

    def alive(self) -> None:
        """The loop's own sign of life, four times in the time that systemd allows for one."""
        now = time.monotonic()
        if self._alive_every_s and now - self._alive_at >= self._alive_every_s:
            self._alive_at = now
            self.tell(WATCHDOG="1")

    def tell(self, **fields: str) -> None:
        """`tell(READY="1", STATUS="serving")`."""
        if not self._address:
            return
        text = "\n".join(f"{k}={v}" for k, v in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)  # one that reads slowly holds nobody up
                sock.sendto(text.encode(), self._address)
        except OSError:
            pass
