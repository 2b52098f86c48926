"""systemd's notification socket: ready, status, stopping. Says nothing where there is none."""

from __future__ import annotations

import os
import socket


class Notifier:
    """Sends to NOTIFY_SOCKET as it was when this was made."""

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path

    def tell(self, **fields: str) -> None:
        """`tell(READY="1", STATUS="serving")`."""
        if not self._address:
            return
        text = "\n".join(f"{k}={v}" for k, v in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.sendto(text.encode(), self._address)
        except OSError:
            pass
