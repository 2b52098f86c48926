"""Files and batches of one frontend: its routes and its worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from appliance.runtime.api.batches.calls import Calls
from appliance.runtime.api.batches.files import Files
from appliance.runtime.api.batches.routes import Batches, BatchRequest
from appliance.runtime.api.batches.store import Archive
from appliance.runtime.api.batches.turn import Turn
from appliance.runtime.api.batches.work import Worker
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.request_log import RequestLog

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
"""What a batch may be for."""

Endpoint = Callable[[Request], Awaitable[Response]]


class BatchRoom:
    """folder: shared by the frontends of a run and by its next lives. share: how many there are.
    requests: where lines are written down like requests of clients."""

    def __init__(self, frontend: Frontend, folder: Path, share: int, requests: RequestLog) -> None:
        self._archive = Archive(folder)
        self._endpoints: dict[str, Endpoint] = {}
        calls = Calls(self._endpoints, requests)
        turn = Turn(frontend, share)
        self._worker = Worker(self._archive, calls, ENDPOINTS, turn, frontend.index)
        self._task: asyncio.Task[None] | None = None

    def routes(self) -> list[tuple[str, str, Endpoint, type | None]]:
        files = Files(self._archive)
        batches = Batches(self._archive, ENDPOINTS, self._worker.wake)
        return [
            ("POST", "/v1/files", files.create, None),
            ("GET", "/v1/files", files.list, None),
            ("GET", "/v1/files/{file_id}", files.show, None),
            ("GET", "/v1/files/{file_id}/content", files.content, None),
            ("DELETE", "/v1/files/{file_id}", files.delete, None),
            ("POST", "/v1/batches", batches.create, BatchRequest),
            ("GET", "/v1/batches", batches.list, None),
            ("GET", "/v1/batches/{batch_id}", batches.show, None),
            ("POST", "/v1/batches/{batch_id}/cancel", batches.cancel, None),
        ]

    def answer_by(self, endpoints: Mapping[str, Endpoint]) -> None:
        """The routes that answer lines, by path."""
        self._endpoints.update({path: endpoints[path] for path in ENDPOINTS})

    def start(self) -> None:
        self._task = asyncio.create_task(self._worker.run())

    async def pause(self) -> None:
        """Gives up what it works on; another frontend, or this one's successor, goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            await self._worker.close()

    async def close(self) -> None:
        await self.pause()
        self._archive.close()
