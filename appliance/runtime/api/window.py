"""What the supervisor tells, for who looks from another machine, behind the same gate as all else.

Any key sees what the figures are made of: no log line, and never text of a prompt or an answer. The
log's end, the settings and the events are for keys that were made with `--admin`. Nothing can be
changed this way.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from appliance.errors import RequestError
from appliance.runtime.api.sse import HEADERS

BASE = "/appliance/v1"
STREAMS = 32
"""Most readers of events that one frontend serves."""
_LONGEST_HISTORY_S = 900
_MOST_LINES = 500
_MOST_EVENTS = 1000
_ANSWER_WITHIN_S = 2.0
_LOOK_S = 0.25
"""How often a stream looks whether the run is being stopped."""
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_EVENT_ID = re.compile(r"[0-9a-f]{1,20}-\d{1,12}")


class Window:
    """control: the supervisor's socket. closing: the frontend takes no more requests, and waits for
    those that are under way."""

    def __init__(self, control: Path, closing: Callable[[], bool]) -> None:
        self._control, self._closing = control, closing
        self._streams = 0

    async def top(self, request: Request) -> Response:
        history = _number(request, "history", 1, _LONGEST_HISTORY_S)
        admin = request.scope["state"]["caller"].admin
        lines = _number(request, "lines", 0, _MOST_LINES) if admin else 0
        return await self._whole(f"/top?history={history}&lines={lines}")

    async def plan(self, request: Request) -> Response:
        _check_admin(request, "the settings")
        return await self._whole("/plan")

    async def events(self, request: Request) -> Response:
        """Server-sent events, until the reader or the run leaves."""
        _check_admin(request, "the events")
        if self._streams >= STREAMS:
            raise RequestError(
                f"{STREAMS} others follow the events here, which is the most.",
                status=429,
                type="rate_limit_error",
                code="too_many_streams",
                retry_after_s=10.0,
            )
        last = request.headers.get("last-event-id", "")
        after = last if _EVENT_ID.fullmatch(last) else ""
        if last and not after:
            after = "0-0"  # of no run: what has been is told again, and that something is missing
        history = _number(request, "history", _MOST_EVENTS, _MOST_EVENTS)
        follow = request.query_params.get("follow", "1") != "0"
        target = f"/events?after={after}&history={history}&follow={int(follow)}"
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                reader, writer = await self._ask(target)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as e:
            raise _absent() from e
        answer = StreamingResponse(self._relay(reader, writer))
        answer.raw_headers[:] = HEADERS
        return answer

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> AsyncIterator[bytes]:
        self._streams += 1
        waiting = asyncio.ensure_future(_chunk(reader))
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=_LOOK_S)
                if done:
                    piece = waiting.result()
                    if not piece:
                        return
                    yield piece
                    waiting = asyncio.ensure_future(_chunk(reader))
                elif self._closing():
                    return
        except (OSError, ValueError, asyncio.IncompleteReadError):
            return  # the supervisor has gone
        finally:
            self._streams -= 1
            waiting.cancel()
            writer.close()

    async def _whole(self, target: str) -> Response:
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                reader, writer = await self._ask(target)
                try:
                    body = await reader.read(-1)
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as e:
            raise _absent() from e
        return Response(body, media_type="application/json")

    async def _ask(self, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """What comes behind the head of an answer of 200; OSError for any other."""
        reader, writer = await asyncio.open_unix_connection(str(self._control))
        try:
            head = f"GET {BASE}{target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            writer.write(head.encode())
            status = _HEAD.match(await reader.readuntil(b"\r\n\r\n"))
            if status is None or status[1] != b"200":
                raise ConnectionError("the supervisor refused")
        except BaseException:
            writer.close()
            raise
        return reader, writer


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    """The next part of a body in chunks; empty at its end."""
    size = int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16)
    return (await reader.readexactly(size + 2))[:-2]


def _number(request: Request, name: str, default: int, most: int) -> int:
    given = request.query_params.get(name, "")
    return min(int(given[:5]), most) if given.isascii() and given.isdecimal() else default


def _check_admin(request: Request, what: str) -> None:
    caller = request.scope["state"]["caller"]
    if caller.admin:
        return
    who = f"the key '{caller.name}'" if caller.name else "who comes without a key"
    raise RequestError(
        f"{who} may not see {what}; a key of `appliance key add NAME --admin` may.",
        status=403,
        type="permission_error",
        code="admin_only",
    )


def _absent() -> RequestError:
    return RequestError(
        "the supervisor of this run does not answer.",
        status=503,
        type="server_error",
        code="no_supervisor",
        retry_after_s=2.0,
    )
