"""HTTP/1.1 over raw sockets: a request goes out, the time of every streamed token comes back.

Written for cost: one search per event, no JSON while tokens flow, connections kept and used again.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from array import array
from time import perf_counter
from typing import Self, cast
from urllib.parse import urlsplit

import msgspec

from appliance import address
from appliance.errors import UsageError

_TEXT = re.compile(rb'"(?:text|content|reasoning_content|reasoning)": ?"[^"]')
_NATIVE_COUNT = re.compile(rb'"completion_tokens": ?(\d+)')
_MAX_HEAD = 65536


class _Reason(msgspec.Struct, frozen=True):
    type: str = ""
    message: str = ""


class Usage(msgspec.Struct, frozen=True):
    """finish_reason: of the native API, where it is no word but an object."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: _Reason | None = None


class _WithUsage(msgspec.Struct, frozen=True):
    """usage: as OpenAI's last event has it. meta_info: of every event of the native API."""

    usage: Usage | None = None
    meta_info: Usage | None = None


class _Error(msgspec.Struct, frozen=True):
    message: str = ""


class _WithError(msgspec.Struct, frozen=True):
    error: _Error | str | None = None
    message: str = ""
    detail: str | None = None


class BadResponse(ValueError):
    """Bytes that are no HTTP/1.1 response."""


class ResponseReader:
    """One response, fed as it comes. Times are of ``perf_counter``, one for each feed.

    times: of the events that carried text. last: of the last event before [DONE].
    """

    def __init__(self) -> None:
        self.status = 0
        self.times = array("d")
        self.last = 0.0
        self.done_seen = False
        self.stream_error = ""
        self.keep_alive = True
        self.body = b""
        self._usage = b""
        self._counted = 0
        self._raw = b""
        self._in_head = True
        self._events_come = False
        self._chunked = False
        self._left = 0
        self._until_close = False
        self._after_chunk = False
        self._in_trailer = False

    @property
    def started(self) -> bool:
        """Whether any byte of the response has come."""
        return bool(self._raw) or not self._in_head

    @property
    def usage(self) -> Usage | None:
        if not self._usage:
            return None
        try:
            found = msgspec.json.decode(self._usage, type=_WithUsage)
        except msgspec.DecodeError:
            return None
        return found.usage or found.meta_info

    def feed(self, data: bytes, now: float) -> bool:
        """True when the response is complete. Raises BadResponse."""
        if self._in_head:
            self._raw += data
            end = self._raw.find(b"\r\n\r\n")
            if end < 0:
                if len(self._raw) > _MAX_HEAD:
                    raise BadResponse("the response's headers do not end")
                return False
            data = self._raw[end + 4 :]
            self._read_head(self._raw[:end])
            self._raw = b""
        if self._chunked:
            payload, complete = self._unchunk(data)
        else:
            payload = data if self._until_close else data[: self._left]
            self._left -= 0 if self._until_close else len(payload)
            complete = not self._until_close and self._left <= 0
        if payload:
            if self._events_come:
                self._read_events(payload, now)
            else:
                self.body += payload
        return complete

    def closed(self) -> bool:
        """The peer closed the connection. True when that is how the response ends."""
        return self._until_close and not self._in_head

    def error(self) -> str:
        """Why the response is no full answer; empty when it is one."""
        if self.status != 200:
            return f"HTTP {self.status}: {_error_message(self.body)}"
        if self.stream_error:
            return self.stream_error
        if self._events_come and not self.done_seen:
            return f"the stream ended without [DONE] after {len(self.times)} chunks"
        usage = self.usage if self._counted else None
        if usage and usage.finish_reason and usage.finish_reason.type in ("abort", "error"):
            return f"the server ended it: {usage.finish_reason.message or 'aborted'}"
        return ""

    def _read_head(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        parts = lines[0].split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise BadResponse(f"not an HTTP/1.1 response: {lines[0][:80]!r}")
        self.status = int(parts[1])
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip().lower()
        self.keep_alive = parts[0] == b"HTTP/1.1" and headers.get(b"connection") != b"close"
        content = headers.get(b"content-type", b"")
        self._events_come = self.status == 200 and content.startswith(b"text/event-stream")
        self._chunked = b"chunked" in headers.get(b"transfer-encoding", b"")
        length = headers.get(b"content-length")
        self._until_close = not self._chunked and length is None
        if length is not None:
            self._left = int(length)
        self._in_head = False

    def _unchunk(self, data: bytes) -> tuple[bytes, bool]:
        """The payload of the chunks in data, and whether the last chunk has been read."""
        if self._raw:
            data, self._raw = self._raw + data, b""
        parts: list[bytes] = []
        at, size = 0, len(data)
        complete = False
        while at < size and not complete:
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                self._after_chunk = not self._left
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            if self._after_chunk:
                self._after_chunk = False
            elif self._in_trailer:
                complete = end == at
            else:
                try:
                    self._left = int(data[at:end].partition(b";")[0], 16)
                except ValueError:
                    raise BadResponse(f"bad chunk size {data[at:end][:40]!r}") from None
                self._in_trailer = not self._left
            at = end + 2
        self._raw = data[at:]
        return (parts[0] if len(parts) == 1 else b"".join(parts)), complete

    def _read_events(self, payload: bytes, now: float) -> None:
        if self.body:
            payload, self.body = self.body + payload, b""
        if b"\r" in payload:
            payload = payload.replace(b"\r\n", b"\n")
        end = payload.rfind(b"\n\n")
        if end < 0:
            self.body = payload
            return
        self.body = payload[end + 2 :]
        for event in payload[:end].split(b"\n\n"):
            at = event.find(b"data:")
            if at < 0:
                continue  # a comment, or only a name
            if len(event) - at < 16 and event[at + 5 :].strip() == b"[DONE]":
                self.done_seen = True
                continue
            self.last = now
            if b'"meta_info"' in event:
                self._read_native(event, at + 5, now)
                continue
            if _TEXT.search(event):
                self.times.append(now)
            if b'"completion_tokens"' in event:
                self._usage = event[at + 5 :]
            if b'"error"' in event and _is_error(event[at + 5 :]):
                self.stream_error = "error in the stream: " + _error_message(event[at + 5 :])

    def _read_native(self, event: bytes, at: int, now: float) -> None:
        """Text and ids so far, with their number: the gap is shared out over the new tokens."""
        self._usage = event[at:]
        count = _NATIVE_COUNT.search(event)
        if count is None or not _TEXT.search(event):
            return
        new, self._counted = int(count[1]) - self._counted, int(count[1])
        if not self.times:
            self.times.append(now)
        elif new > 0:
            before = self.times[-1]
            gap = (now - before) / new
            self.times.extend(before + gap * i for i in range(1, new))
            self.times.append(now)


def _is_error(data: bytes) -> bool:
    """A chunk's text may hold the word; only a field of that name is an error."""
    try:
        return msgspec.json.decode(data, type=_WithError).error is not None
    except msgspec.DecodeError:
        return True


def _error_message(body: bytes) -> str:
    """The message of an OpenAI-style error body, or its beginning."""
    try:
        found = msgspec.json.decode(body, type=_WithError)
    except msgspec.DecodeError:
        return body[:200].decode("utf-8", "replace").strip() or "(no body)"
    if isinstance(found.error, _Error):
        return found.error.message
    return found.error or found.message or found.detail or body[:200].decode("utf-8", "replace")


class Connection(asyncio.Protocol):
    """One kept socket; at most one request at a time."""

    def __init__(self) -> None:
        self.open = True
        self.requests = 0
        self._transport: asyncio.Transport | None = None
        self._reader = ResponseReader()
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    async def exchange(self, request: bytes) -> ResponseReader:
        """Sends one request; returns the whole response. Raises ConnectionError, BadResponse."""
        assert self._transport is not None and self._waiter is None
        self._reader = reader = ResponseReader()
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._waiter
        finally:
            self._waiter = None
            self.requests += 1
        if not reader.keep_alive:
            self.close()
        return reader

    @property
    def answered(self) -> bool:
        """Whether the latest request got any byte back."""
        return self._reader.started

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        waiter = self._waiter
        if waiter is None:
            self.close()  # bytes nobody asked for
            return
        try:
            if self._reader.feed(data, perf_counter()) and not waiter.done():
                waiter.set_result(None)
        except BadResponse as problem:
            self._fail(problem)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if exc is None and self._reader.closed():
            waiter.set_result(None)
        else:
            self._fail(ConnectionResetError("the server closed the connection"))

    def _fail(self, problem: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(problem)


class Endpoint:
    """A server's base URL with its idle connections."""

    def __init__(self, url: str, api_key: str = "") -> None:
        url = address.normal(url)
        parts = urlsplit(url)
        self._socket = address.socket_of(url)
        if self._socket is not None:
            parts = urlsplit(address.LOCAL + parts.path)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"{url!r} is no URL of a server.", "Give one such as http://127.0.0.1:8000."
            )
        try:
            port = parts.port
        except ValueError:
            raise UsageError(f"{url!r} has no valid port.", "Use 1 to 65535.") from None
        self.host = parts.hostname
        self.port = port or (443 if parts.scheme == "https" else 80)
        self.url = address.shown(url) if self._socket else f"{parts.scheme}://{parts.netloc}"
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers = (
            f"Host: {parts.netloc.rpartition('@')[2]}\r\nUser-Agent: appliance-bench\r\n{key}"
        )
        self._idle: list[Connection] = []

    async def post(self, path: str, body: bytes) -> ResponseReader:
        head = (
            f"POST {self._prefix}{path} HTTP/1.1\r\n{self._headers}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return await self._send(head.encode() + body)

    async def get(self, path: str) -> ResponseReader:
        return await self._send(
            f"GET {self._prefix}{path} HTTP/1.1\r\n{self._headers}\r\n".encode()
        )

    async def _send(self, request: bytes) -> ResponseReader:
        """Raises OSError or BadResponse.

        A kept connection that the server closed while it was idle is replaced, once: no byte of an
        answer has come, so the server had not taken the request.
        """
        while True:
            connection = await self._connection()
            try:
                reader = await connection.exchange(request)
            except ConnectionError:
                if connection.requests > 1 and not connection.answered:
                    continue
                raise
            except BaseException:
                connection.close()
                raise
            if connection.open:
                self._idle.append(connection)
            return reader

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            _, connection = await loop.create_unix_connection(Connection, self._socket)
            return connection
        _, connection = await loop.create_connection(
            Connection, self.host, self.port, ssl=self._ssl
        )
        return connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # the loop closes aborted sockets in its next turn
