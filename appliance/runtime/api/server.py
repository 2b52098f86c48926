"""HTTP on an inherited listening socket: uvicorn's protocol with limits that it does not set."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import httptools
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from appliance.errors import RequestError
from appliance.runtime.api.accept import Acceptor, Shares
from appliance.runtime.api.addresses import Addresses, counted_as
from appliance.runtime.api.errors import error_body, error_headers
from appliance.runtime.api.linger import LingeringTransport

MAX_HEAD_BYTES = 32 << 10
MAX_FIELDS = 100
HEAD_TIMEOUT_S = 10.0
BODY_PACE_S = 10.0
MIN_BODY_PACE = 16 << 10
"""Bytes a second that a body must come with, over BODY_PACE_S seconds each."""
MAX_CONNECTIONS = 4096
RETRY_S = 1.0
"""After which one who holds too many connections may try again."""
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
    """Bounds what a connection may send and how long it may take: a head by bytes, fields and
    seconds, a body by its pace, an answer by its reader's."""

    def __init__(self, *args: Any, addresses: Addresses, shares: Shares, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._addresses, self._shares = addresses, shares
        self._address = ""
        self._raw_bytes = 0
        self._head_bytes = 0
        self._fields = 0
        self._body_bytes = 0
        self._in_head = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    # A connection

    def connection_made(self, transport: asyncio.Transport) -> None:
        lingering = LingeringTransport(transport, self.loop, lambda: self._body_timer is not None)
        super().connection_made(lingering)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # What is left in the kernel when an answer is out is nobody's but its own to time out.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_STALL_S * 1000))
        address = counted_as(transport.get_extra_info("peername"))
        if len(self.connections) > MAX_CONNECTIONS:
            self._answer(503, "too_many_connections", "this server holds too many connections.")
            transport.close()  # at once: there are too many
        elif not self._addresses.take(address):
            self._answer(
                429,
                "too_many_connections",
                f"{address} holds {self._addresses.most:,} connections, and one address may have "
                "no more (serve.max_connections_per_address).",
            )
            transport.close()
        else:
            self._address = address
            self._start_head_timer()

    def data_received(self, data: bytes) -> None:
        if self.transport.lingering:
            self.transport.discard(data)
            return
        super().data_received(data)
        if self._in_head:
            self._raw_bytes += len(data)
            if self._raw_bytes > MAX_HEAD_BYTES:
                self._refuse_head()
        elif self._body_timer is None and self._idle() and not self.transport.is_closing():
            # bytes that begin no request, such as empty lines, must not hold the connection open
            self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(head=True, body=True, stall=True)
        self._shares.add(-1)
        self.transport.lost()
        if self._address:
            self._addresses.leave(self._address)
        super().connection_lost(exc)

    def _idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    # A request

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._raw_bytes = self._head_bytes = self._fields = 0
        self._in_head = True
        self._stop(head=True)
        self._start_head_timer()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._count(len(name) + len(value))
        if self._in_head:  # what trails a body is no header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop(head=True)
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise httptools.HttpParserError("a request names one host")
        if not self.url.startswith(b"/"):
            _check_target(self.url, hosts)
        super().on_headers_complete()
        self._body_bytes = 0
        self._body_timer = self.loop.call_later(BODY_PACE_S, self._check_pace, 0)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop(body=True)
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Called for every fault of the parser, our own refusals among them."""
        if self._fields > MAX_FIELDS or self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        else:
            self._refuse(400, "bad_request", "this is no well-formed HTTP request.")

    # An answer

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(WRITE_STALL_S, self._stalled)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop(stall=True)

    # Limits

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or self._fields > MAX_FIELDS:
            raise _HeadTooLarge

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_too_slow)

    def _stop(self, *, head: bool = False, body: bool = False, stall: bool = False) -> None:
        if head and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if body and self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        if stall and self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(
                408, "request_timeout", f"the head did not come within {HEAD_TIMEOUT_S:g} seconds."
            )
        else:
            self.transport.close()

    def _check_pace(self, before: int) -> None:
        """Every BODY_PACE_S seconds; a body that we do not read just now is not to blame."""
        if self._idle():
            self.transport.close()  # answered before its body came, which need not come any more
            return
        came = self._body_bytes - before
        if came < MIN_BODY_PACE * BODY_PACE_S and not self.flow.read_paused:
            self._body_timer = None
            self._refuse(
                408,
                "request_timeout",
                f"the body came at {came / BODY_PACE_S:,.0f} bytes a second; at least "
                f"{MIN_BODY_PACE:,} are waited for.",
            )
            return
        self._body_timer = self.loop.call_later(BODY_PACE_S, self._check_pace, self._body_bytes)

    def _stalled(self) -> None:
        log.warning("a client has read nothing for %d s; its connection is closed", WRITE_STALL_S)
        self.transport.abort()

    def _refuse_head(self) -> None:
        self._refuse(
            431,
            "headers_too_large",
            f"the head has more than {MAX_HEAD_BYTES:,} bytes or {MAX_FIELDS} fields.",
        )

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answers and closes; closes only where an answer has begun, which must not be mixed."""
        self._stop(head=True, body=True)
        if self.transport.is_closing():
            return
        if not self.pipeline and (self._idle() or not self.cycle.response_started):
            self._answer(status, code, message)
        self.transport.close_lingering()

    def _answer(self, status: int, code: str, message: str) -> None:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        busy = code == "too_many_connections"
        error = RequestError(
            message,
            status=status,
            type="rate_limit_error" if status == 429 else kind,
            code=code,
            retry_after_s=RETRY_S if busy else None,
        )
        body = error_body(error)
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        head += f"connection: close\r\ncontent-length: {len(body)}\r\n"
        head += "content-type: application/json\r\n"
        told = b"".join(b"%b: %b\r\n" % pair for pair in error_headers(error))
        self.transport.write(head.encode() + told + b"\r\n" + body)


def _check_target(url: bytes, hosts: list[bytes]) -> None:
    """HttpParserError unless a target that names a host names the one that the header does."""
    target = httptools.parse_url(url)
    name = target.host or b""
    if target.port is not None:
        name += b":%d" % target.port
    if [name.lower()] != [h.lower() for h in hosts]:
        raise httptools.HttpParserError("the target's host is not the host")


class HttpServer:
    """Serves `app` on a socket that is listening already, and that others may share.

    per_address: most connections of one address on another machine; 0: any number.
    """

    def __init__(
        self, app: ASGIApp, listener: socket.socket, shares: Shares, per_address: int = 0
    ) -> None:
        self._addresses, self._shares = Addresses(per_address), shares
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
        # a line for each malformed request would let anybody fill the log
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._listener = listener
        self._state = ServerState()
        self._acceptor = Acceptor(listener, self._protocol, shares)

    def limit(self, per_address: int) -> None:
        """Another limit for connections to come; those that are there stay."""
        self._addresses.most = per_address

    async def start(self) -> None:
        self._config.load()
        self.tick()
        self._acceptor.start()

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
        self._acceptor.close()
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
            config=self._config,
            server_state=self._state,
            app_state={},
            addresses=self._addresses,
            shares=self._shares,
        )
        return made
