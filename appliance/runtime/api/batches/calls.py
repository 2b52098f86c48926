"""A line of a batch as a request to its route, without a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from appliance.runtime.api.callers import Caller
from appliance.runtime.api.request_log import RequestLog
from appliance.runtime.api.sse import encode

PRIORITY = -1_000_000
"""Below what any live request would ask for."""

AGENT = "batch"
CANCELLED = 499
"""Status of a line whose batch was ended before it."""

Endpoint = Callable[[Request], Awaitable[Response]]


class Answered(NamedTuple):
    """retry_after_s: set where the same request may be answered later."""

    status: int
    body: bytes
    retry_after_s: float | None


class Calls:
    """endpoints: by path."""

    def __init__(self, endpoints: Mapping[str, Endpoint], requests: RequestLog) -> None:
        self._endpoints, self._requests = endpoints, requests

    async def ask(self, path: str, body: dict[str, Any], id: str, caller: Caller) -> Answered:
        """Cancelling it aborts what is computed."""
        data = encode(body)
        entry = self._requests.begin(id, "POST", path, AGENT)
        state = {"request_id": id, "caller": caller, "entry": entry}
        scope = self._scope(path, len(data), state)
        unread = [data]

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await asyncio.get_running_loop().create_future()
            raise AssertionError("the future never ends")

        parts: list[bytes] = []

        async def send(message: Message) -> None:
            parts.append(message.get("body", b""))

        status = CANCELLED
        try:
            response = await self._endpoints[path](Request(scope, receive))
            await response(scope, receive, send)
            status = response.status_code
        finally:
            self._requests.end(entry, status, caller)
        wait = None
        if response.status_code in (429, 503):
            wait = float(response.headers.get("retry-after", "5"))
        return Answered(response.status_code, b"".join(parts), wait)

    def _scope(self, path: str, length: int, state: dict[str, Any]) -> Scope:
        return {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(length).encode()),
                (b"user-agent", AGENT.encode()),
            ],
            "client": None,
            "server": None,
            "state": state,
        }
