"""The supervisor's snapshot for dashboards on other machines, behind the same gate as all else.

It shows what the figures are made of: no log line, and never text of a prompt or an answer.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from appliance.errors import RequestError

ROUTE = "/appliance/v1/top"
_LONGEST_HISTORY_S = 900
_ANSWER_WITHIN_S = 2.0


class Window:
    """control: the supervisor's socket."""

    def __init__(self, control: Path) -> None:
        self._control = control

    async def top(self, request: Request) -> Response:
        wanted = request.query_params.get("history", "")
        history = min(int(wanted[:4]), _LONGEST_HISTORY_S) if wanted.isdecimal() else 1
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                body = await self._ask(f"{ROUTE}?history={history}&lines=0")
        except (OSError, TimeoutError) as e:
            raise RequestError(
                "the supervisor of this run does not answer.",
                status=503,
                type="server_error",
                code="no_supervisor",
                retry_after_s=2.0,
            ) from e
        return Response(body, media_type="application/json")

    async def _ask(self, target: str) -> bytes:
        """The body of an answer of 200; OSError for any other."""
        reader, writer = await asyncio.open_unix_connection(str(self._control))
        try:
            head = f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            writer.write(head.encode())
            answer = await reader.read(-1)
        finally:
            writer.close()
        status, _, rest = answer.partition(b"\r\n")
        if status.split(b" ")[1:2] != [b"200"]:
            raise ConnectionError(f"answered {status[:80]!r}")
        return rest.partition(b"\r\n\r\n")[2]
