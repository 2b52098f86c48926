"""Unix sockets between frontends and an engine: `EngineDoor` blocks, `EngineLink` is asyncio.

A frame is a little-endian uint32 length and that many bytes. Both ends see the other's death as
the end of the stream, at once; that is why these are plain sockets.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import cast

from appliance.runtime.wire.codec import (
    MAX_MESSAGE,
    VERSION,
    CodecError,
    decode_to_engine,
    decode_to_frontend,
    encode,
)
from appliance.runtime.wire.delta import Leaving, ToFrontend, Welcome
from appliance.runtime.wire.request import Hello, ToEngine

_LENGTH = struct.Struct("<I")
_READ = 1 << 20


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Returns the frames that are now whole. CodecError when one is too long."""
        buffer = self._data
        buffer += data
        frames: list[bytes] = []
        at = 0
        while len(buffer) - at >= 4:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > MAX_MESSAGE:
                raise CodecError(f"a frame of {length} bytes")
            if len(buffer) - at - 4 < length:
                break
            frames.append(bytes(memoryview(buffer)[at + 4 : at + 4 + length]))
            at += 4 + length
        if at:
            del buffer[:at]
        return frames


def frame(message: object) -> bytes:
    data = encode(message)
    return _LENGTH.pack(len(data)) + data


class _Peer:
    """One connected frontend, as the engine sees it."""

    __slots__ = ("backlog", "number", "reader", "sock")

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.reader = FrameReader()
        self.backlog: deque[memoryview] = deque()


class EngineDoor:
    """The engine's end: accepts frontends, gives their messages, sends without ever blocking.

    A peer is named by a number that is not used again. What a slow peer has not read yet waits in
    memory; it is bounded by the max_tokens of the requests that peer has.
    """

    def __init__(self, path: Path, welcome: Welcome) -> None:
        self._welcome = frame(welcome)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)  # nobody can connect before it listens
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)
        self._peers: dict[int, _Peer] = {}  # by file descriptor
        self._numbers: dict[int, int] = {}  # peer -> file descriptor
        self._accepted = 0

    def receive(self, timeout: float) -> list[tuple[int, ToEngine | None]]:
        """Messages that have come, waiting up to `timeout` seconds for the first.

        (peer, None) says that the peer has gone; nothing follows from it.
        """
        got: list[tuple[int, ToEngine | None]] = []
        for fd, event in self._poll.poll(timeout * 1000):
            if fd == self._listener.fileno():
                self._accept()
                continue
            peer = self._peers.get(fd)
            if peer is None:
                continue
            if event & select.POLLOUT:
                self._flush(fd, peer)
            if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self._read(fd, peer, got)
        return got

    def send(self, peer: int, message: ToFrontend) -> None:
        """Queues a message; one for a peer that has gone is dropped."""
        fd = self._numbers.get(peer)
        if fd is None:
            return
        known = self._peers[fd]
        known.backlog.append(memoryview(frame(message)))
        if len(known.backlog) == 1:
            self._flush(fd, known)

    def leave(self) -> None:
        """Tells every peer that this engine ends on purpose, as far as they read at once."""
        for number in list(self._numbers):
            self.send(number, Leaving())

    def close(self) -> None:
        for peer in self._peers.values():
            peer.sock.close()
        self._peers.clear()
        self._numbers.clear()
        self._listener.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._accepted += 1
        peer = _Peer(sock, self._accepted)
        self._peers[sock.fileno()] = peer
        self._numbers[peer.number] = sock.fileno()
        self._poll.register(sock, select.POLLIN)
        peer.backlog.append(memoryview(self._welcome))
        self._flush(sock.fileno(), peer)

    def _read(self, fd: int, peer: _Peer, got: list[tuple[int, ToEngine | None]]) -> None:
        try:
            data = peer.sock.recv(_READ)
            if data:
                got += [(peer.number, decode_to_engine(f)) for f in peer.reader.feed(data)]
                return
        except BlockingIOError:
            return
        except (OSError, CodecError):
            pass
        self._drop(fd, peer)
        got.append((peer.number, None))

    def _flush(self, fd: int, peer: _Peer) -> None:
        try:
            while peer.backlog:
                head = peer.backlog[0]
                sent = peer.sock.send(head)
                if sent < len(head):
                    peer.backlog[0] = head[sent:]
                    break
                peer.backlog.popleft()
        except BlockingIOError:
            pass
        except OSError:
            peer.backlog.clear()  # the end of the stream is seen by the next read
        want = select.POLLIN | (select.POLLOUT if peer.backlog else 0)
        if fd in self._peers:
            self._poll.modify(fd, want)

    def _drop(self, fd: int, peer: _Peer) -> None:
        self._poll.unregister(fd)
        del self._peers[fd]
        del self._numbers[peer.number]
        peer.sock.close()


class EngineLink(asyncio.Protocol):
    """A frontend's end of one connection. Make it with `connect`.

    on_message is called in the event loop for each message after Welcome; on_lost once, when the
    engine has gone. `welcome` is set before connect returns.
    """

    def __init__(
        self, on_message: Callable[[ToFrontend], None], on_lost: Callable[[], None]
    ) -> None:
        self._reader = FrameReader()
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._ready: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self.welcome: Welcome | None = None

    @classmethod
    async def connect(
        cls,
        path: Path,
        frontend: int,
        on_message: Callable[[ToFrontend], None],
        on_lost: Callable[[], None],
    ) -> EngineLink:
        """Raises OSError when no engine listens, CodecError when it speaks another version."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(lambda: cls(on_message, on_lost), str(path))
        link.send(Hello(version=VERSION, frontend=frontend, pid=os.getpid()))
        try:
            async with asyncio.timeout(10):  # wait_for may swallow a cancellation before 3.12
                link.welcome = await link._ready
        except TimeoutError as e:
            link.close()
            raise ConnectionError("the engine does not answer") from e
        except BaseException:
            link.close()
            raise
        if link.welcome.version != VERSION:
            link.close()
            raise CodecError(f"the engine speaks version {link.welcome.version}, not {VERSION}")
        return link

    def send(self, message: ToEngine) -> None:
        """Queues a message; after the engine's death it goes nowhere."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it

    def data_received(self, data: bytes) -> None:
        try:
            for piece in self._reader.feed(data):
                message = decode_to_frontend(piece)
                if isinstance(message, Welcome):
                    if not self._ready.done():
                        self._ready.set_result(message)
                else:
                    self._on_message(message)
        except CodecError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ready.done():
            self._ready.set_exception(ConnectionError("the engine closed the connection"))
            self._ready.exception()
        self._on_lost()
