"""Closing a connection whose client is still sending, so that the client reads the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LINGER_S = 30.0
LINGER_IDLE_S = 5.0
LINGER_BYTES = 64 << 20


class LingeringTransport:
    """A transport that ends our side alone, and reads on where `unread()` says that more comes.

    Closing over bytes that were not read resets the connection, and a reset may overtake the
    answer: the client would see its connection break instead of the refusal. What comes is thrown
    away, for LINGER_S seconds at most, LINGER_IDLE_S of silence or LINGER_BYTES.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        unread: Callable[[], bool],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._unread = unread
        self._timer: asyncio.TimerHandle | None = None
        self._came = 0
        self.lingering = False
        # What a protocol asks of a transport, without a way through us: a delta is a write.
        self.write = transport.write
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.set_protocol = transport.set_protocol

    def is_closing(self) -> bool:
        return self.lingering or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if self._unread():
            self.close_lingering()
        else:
            self._transport.close()

    def close_lingering(self) -> None:
        if self.is_closing():
            return
        self.lingering = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._timer = self._loop.call_later(LINGER_IDLE_S, self._check, 0, LINGER_S)

    def discard(self, data: bytes) -> None:
        """What came while lingering."""
        self._came += len(data)
        if self._came > LINGER_BYTES:
            self._transport.abort()

    def lost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, came: int, left_s: float) -> None:
        left_s -= LINGER_IDLE_S
        if self._came == came or left_s <= 0:
            self._transport.abort()
            return
        self._timer = self._loop.call_later(LINGER_IDLE_S, self._check, self._came, left_s)
