"""How a run is reached: the URL of a port or of a Unix socket, for programs, people and curl.

The URL of a Unix socket is `http+unix://%2Frun%2Fllm.sock`: a route can be put behind it.
"""

from __future__ import annotations

import http.client
import re
import shlex
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from appliance.errors import UsageError

_UNIX = "http+unix"
LOCAL = "http://localhost"
"""What is asked for through a Unix socket, whose name says nothing to HTTP."""


def unix_url(path: str) -> str:
    return f"{_UNIX}://{quote(path, safe='')}"


def normal(url: str) -> str:
    """As it was typed: `unix:PATH` for a Unix socket, and `http://` may be left out."""
    if url.startswith("unix:"):
        return unix_url("/" + url.removeprefix("unix:").lstrip("/"))
    return url if "://" in url else f"http://{url}"


def socket_of(url: str) -> str | None:
    """The path of the Unix socket that a URL names; None for a URL of a port, or none at all."""
    if not url.startswith(f"{_UNIX}://"):
        return None
    return unquote(re.split("[/?#]", url.removeprefix(f"{_UNIX}://"), maxsplit=1)[0])


def route_of(url: str) -> str:
    """What stands behind the address, without a `/v1` and a slash at its end."""
    return urlsplit(url).path.rstrip("/").removesuffix("/v1")


def shown(url: str) -> str:
    """For people: `http://127.0.0.1:8000/v1` or `unix:/run/llm.sock`."""
    path = socket_of(url)
    return f"{url}/v1" if path is None else f"unix:{path}"


def curl(url: str, route: str) -> str:
    """The words of a curl that asks for `route`: `http://…/v1/models` or `--unix-socket PATH …`."""
    path = socket_of(url)
    if path is None:
        return shlex.quote(url + route)
    return f"--unix-socket {shlex.quote(path)} {shlex.quote(LOCAL + route)}"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self.wire: socket.socket | None = None
        """Stays here when http.client has handed the socket on to the response."""

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self.timeout)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        self.sock = self.wire = sock


def connection(url: str, timeout: float) -> http.client.HTTPConnection:
    """Not yet opened. UsageError when `url` names no server."""
    path = socket_of(url)
    if path:
        return UnixConnection(path, timeout)
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme not in ("http", "https") or not host:
        raise UsageError(
            f"'{url}' is no URL of a server.", "Use --url http://HOST:PORT or --url unix:PATH"
        )
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=timeout)
    return http.client.HTTPConnection(host, port, timeout=timeout)


def listening(doors: Iterable[Path]) -> list[str]:
    """Of the control sockets of runs those that somebody listens on: the names of these runs."""
    found = []
    for door in sorted(doors):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(door))
            except OSError:
                continue
        found.append(door.parent.name)
    return found


def start_or_name(others: Sequence[str]) -> str:
    """What to do where the run that was meant is not up. others: names of those that are."""
    start = "Start it with `appliance up`."
    if not others:
        return start
    one = others[0]
    return (
        f"Give its name, as in `appliance status {one}` or `appliance chat --name {one}`: "
        f"{', '.join(others)} {'runs' if len(others) == 1 else 'run'} here.\n{start}"
    )
