"""/v1/batches: create, look, list, cancel. The work itself is the Worker's."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Annotated, Any

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from appliance.errors import RequestError
from appliance.runtime.api.batches.files import (
    JSON,
    caller_of,
    life_of,
    listed,
    may_see,
    no_such_file,
    page_of,
)
from appliance.runtime.api.batches.records import (
    BATCH_PURPOSE,
    WINDOW,
    WINDOW_S,
    BatchRecord,
    new_id,
)
from appliance.runtime.api.batches.store import Archive, Store
from appliance.runtime.api.generate import read_body
from appliance.runtime.api.schema import decode_body
from appliance.runtime.api.sse import encode

MAX_METADATA = 16
MAX_KEY, MAX_VALUE = 64, 512


class ExpiresAfter(Struct):
    anchor: str
    seconds: int


class BatchRequest(Struct, kw_only=True):
    input_file_id: Annotated[str, Meta(max_length=64)]
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


class Batches:
    """wake: called when the worker has something new to look at."""

    def __init__(
        self, archive: Archive, endpoints: Collection[str], wake: Callable[[], None]
    ) -> None:
        self._archive, self._endpoints, self._wake = archive, endpoints, wake

    async def create(self, request: Request) -> Response:
        body = decode_body(BatchRequest, await read_body(request))
        self._check(body)
        file = None
        if self._archive.exists:
            file = await self._archive.do(Store.file, body.input_file_id)
        if file is None or not may_see(request, file.key):
            raise no_such_file(body.input_file_id)
        if file.purpose != BATCH_PURPOSE:
            raise RequestError(
                f"The file {file.id!r} has the purpose {file.purpose!r}; a batch reads files of "
                f"purpose {BATCH_PURPOSE!r}.",
                param="input_file_id",
            )
        kept = None
        if body.output_expires_after is not None:
            wanted = body.output_expires_after
            kept = life_of(wanted.seconds, wanted.anchor, "output_expires_after")
        now = int(time.time())
        record = BatchRecord(
            id=new_id("batch_"),
            endpoint=body.endpoint,
            input_file_id=file.id,
            created_at=now,
            expires_at=now + WINDOW_S,
            metadata=body.metadata,
            output_expires_after_s=kept,
            key=caller_of(request).name,
            namespace=caller_of(request).namespace,
        )
        await self._archive.do(Store.add_batch, record)
        self._wake()
        return _shown(record)

    async def show(self, request: Request) -> Response:
        return _shown(await self._find(request))

    async def list(self, request: Request) -> Response:
        page = page_of(request, 20, 100)
        records: list[BatchRecord] = []
        if self._archive.exists:
            records = await self._archive.do(
                Store.batches, caller_of(request).name, page.after, page.limit
            )
        return listed([r.shown() for r in records], page.limit)

    async def cancel(self, request: Request) -> Response:
        id = (await self._find(request)).id
        record = await self._archive.do(
            Store.change,
            id,
            ("validating", "in_progress", "finalizing"),
            status="cancelling",
            cancelling_at=int(time.time()),
        )
        if record is None:
            raise _no_such_batch(id)
        if record.status not in ("cancelling", "cancelled"):
            raise RequestError(
                f"The batch {id!r} is {record.status} and cannot be cancelled.",
                status=409,
                code="batch_ended",
            )
        self._wake()
        return _shown(record)

    async def _find(self, request: Request) -> BatchRecord:
        id = request.path_params["batch_id"]
        record = await self._archive.do(Store.batch, id) if self._archive.exists else None
        if record is None or not may_see(request, record.key):
            raise _no_such_batch(id)
        return record

    def _check(self, body: BatchRequest) -> None:
        if body.endpoint not in self._endpoints:
            raise RequestError(
                f"endpoint is {body.endpoint[:60]!r}; batches are taken for "
                f"{', '.join(sorted(self._endpoints))}.",
                code="unsupported_value",
                param="endpoint",
            )
        if body.completion_window != WINDOW:
            raise RequestError(
                f"completion_window is {body.completion_window[:20]!r}; only {WINDOW!r} is taken.",
                code="unsupported_value",
                param="completion_window",
            )
        metadata = body.metadata or {}
        if len(metadata) > MAX_METADATA or any(
            len(k) > MAX_KEY or len(v) > MAX_VALUE for k, v in metadata.items()
        ):
            raise RequestError(
                f"metadata takes {MAX_METADATA} pairs, keys of {MAX_KEY} and values of "
                f"{MAX_VALUE} characters.",
                param="metadata",
            )


def _shown(record: BatchRecord) -> Response:
    body: dict[str, Any] = record.shown()
    return Response(encode(body), media_type=JSON)


def _no_such_batch(id: str) -> RequestError:
    return RequestError(
        f"No batch has the id {id[:64]!r}.", status=404, code="not_found", param="batch_id"
    )
