"""HTTP on an inherited listening socket: uvicorn's protocol with limits that it does not set."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from email.utils import formatdate
from typing import Any

import httptools
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MAX_HEAD_BYTES = 32 << 10
MAX_FIELDS = 100
HEAD_TIMEOUT_S = 10.0
WRITE_STALL_S = 30.0
KEEP_ALIVE_S = 65

log = logging.getLogger(__name__)


def raise_file_limit() -> None:
    """Every connection is a file; the usual soft limit of 1024 is a shell's, not a server's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _HeadTooLarge(Exception):
    pass


class LimitedProtocol(HttpToolsProtocol):  # type: ignore[misc]
    """Refuses a head that is too large or comes too slowly, and drops a reader that has stopped."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._fields = 0
        self._in_head = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # What is left in the kernel when an answer is out is nobody's but its own to time out.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_STALL_S * 1000))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")

    def send_400_response(self, msg: str) -> None:
        """Called for every fault of the parser, our own refusals among them."""
        if self._fields > MAX_FIELDS or self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")
        elif not self.transport.is_closing():
            self._refuse(b"400 Bad Request")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = self._fields = 0
        self._in_head = True
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._too_slow)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_done()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise httptools.HttpParserError("a request names one host")
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(WRITE_STALL_S, self._stalled)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or self._fields > MAX_FIELDS:
            raise _HeadTooLarge

    def _head_done(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _too_slow(self) -> None:
        self._refuse(b"408 Request Timeout")

    def _stalled(self) -> None:
        log.warning("a client has read nothing for %d s; its connection is closed", WRITE_STALL_S)
        self.transport.abort()

    def _refuse(self, status: bytes) -> None:
        self._head_done()
        if self.transport.is_closing():
            return
        self.transport.write(
            b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        )
        self.transport.close()


class HttpServer:
    """Serves `app` on a socket that is listening already."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        self._config = Config(
            app,
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._listener = listener
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._config.load()
        loop = asyncio.get_running_loop()
        self.tick()
        self._server = await loop.create_server(self._protocol, sock=self._listener, backlog=2048)

    def tick(self) -> None:
        """Once a second: the date that every answer carries."""
        date = formatdate(time.time(), usegmt=True).encode()
        self._state.default_headers[:] = [(b"date", date), (b"server", b"appliance")]

    @property
    def busy(self) -> int:
        """Requests being answered."""
        return len(self._state.tasks)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Takes no more connections; answers that are under way have `grace_s` to end."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        tasks = list(self._state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
        for connection in list(self._state.connections):
            connection.transport.abort()

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = LimitedProtocol(
            config=self._config, server_state=self._state, app_state={}
        )
        return made
