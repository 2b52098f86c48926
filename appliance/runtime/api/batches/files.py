"""/v1/files: what batches read and write."""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from appliance.errors import RequestError
from appliance.runtime.api.batches.records import PURPOSES, FileRecord, new_id
from appliance.runtime.api.batches.store import Archive, Store
from appliance.runtime.api.batches.upload import take_upload
from appliance.runtime.api.callers import Caller
from appliance.runtime.api.sse import encode

JSON = "application/json"
MOST_LISTED = 10_000
SHORTEST_LIFE_S, LONGEST_LIFE_S = 3600, 30 * 24 * 3600
_ID = re.compile(r"^[A-Za-z0-9_-]{1,64}$")


class Page(NamedTuple):
    after: str
    limit: int
    ascending: bool


def page_of(request: Request, usual: int, most: int) -> Page:
    """after, limit and order of a list's query. RequestError for a value that cannot be."""
    given = request.query_params
    limit = given.get("limit", str(usual))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= most):
        raise RequestError(f"limit is {limit[:20]!r}; 1 to {most:,} are taken.", param="limit")
    order = given.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestError(f"order is {order[:20]!r}; it is 'asc' or 'desc'.", param="order")
    return Page(given.get("after", "")[:64], int(limit), order == "asc")


def listed(records: list[dict[str, Any]], limit: int) -> Response:
    """records: one more than the limit when there are more."""
    shown = records[:limit]
    body = {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(records) > limit,
    }
    return Response(encode(body), media_type=JSON)


def life_of(seconds: object, anchor: object, param: str) -> int:
    """Seconds a file is kept. RequestError outside of an hour to thirty days."""
    number = int(seconds) if isinstance(seconds, str) and seconds.isdecimal() else seconds
    if anchor != "created_at":
        raise RequestError(f"{param}: the anchor must be 'created_at'.", param=param)
    if not isinstance(number, int) or not SHORTEST_LIFE_S <= number <= LONGEST_LIFE_S:
        raise RequestError(
            f"{param}: seconds must be {SHORTEST_LIFE_S} to {LONGEST_LIFE_S}.", param=param
        )
    return number


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope["state"]["caller"]
    return caller


def may_see(request: Request, key: str) -> bool:
    """What was made with a key is that key's; where nobody has one, everybody's."""
    return caller_of(request).name in ("", key)


def no_such_file(id: str) -> RequestError:
    return RequestError(
        f"No file has the id {id[:64]!r}.", status=404, code="not_found", param="file_id"
    )


class Files:
    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    async def create(self, request: Request) -> Response:
        length = request.headers.get("content-length", "0")
        await self._archive.do(Store.check_room, int(length) if length.isdecimal() else 0)
        id = new_id("file-")
        arriving = self._archive.folder / "files" / f"{id}.part"
        try:
            upload = await take_upload(request, arriving)
            record = _record(id, upload.name, upload.bytes, upload.fields, caller_of(request).name)
            await self._archive.do(Store.add_file, record, arriving)
        finally:
            arriving.unlink(missing_ok=True)
        return Response(encode(record.shown()), media_type=JSON)

    async def list(self, request: Request) -> Response:
        page = page_of(request, MOST_LISTED, MOST_LISTED)
        purpose = request.query_params.get("purpose", "")
        records: list[FileRecord] = []
        if self._archive.exists:
            records = await self._archive.do(
                Store.files,
                caller_of(request).name,
                purpose,
                page.after,
                page.limit,
                page.ascending,
            )
        return listed([r.shown() for r in records], page.limit)

    async def show(self, request: Request) -> Response:
        record = await self._find(request)
        return Response(encode(record.shown()), media_type=JSON)

    async def content(self, request: Request) -> Response:
        record = await self._find(request)
        path = self._archive.folder / "files" / record.id
        if not path.is_file():
            raise no_such_file(record.id)
        return FileResponse(path, media_type="application/octet-stream", filename=record.filename)

    async def delete(self, request: Request) -> Response:
        record = await self._find(request)
        if not await self._archive.do(Store.remove_file, record.id):
            raise no_such_file(record.id)
        body = {"id": record.id, "object": "file", "deleted": True}
        return Response(encode(body), media_type=JSON)

    async def _find(self, request: Request) -> FileRecord:
        id = request.path_params["file_id"]
        record = None
        if self._archive.exists and _ID.match(id):
            record = await self._archive.do(Store.file, id)
        if record is None or not may_see(request, record.key):
            raise no_such_file(id)
        return record


def _record(id: str, name: str, size: int, fields: dict[str, str], key: str) -> FileRecord:
    purpose = fields.get("purpose")
    if purpose not in PURPOSES:
        what = "is missing" if purpose is None else f"is {purpose[:40]!r}"
        raise RequestError(
            f"purpose {what}; files are kept for {', '.join(map(repr, PURPOSES))} only.",
            code="unsupported_value",
            param="purpose",
        )
    now = int(time.time())
    expires_at = None
    if "expires_after[seconds]" in fields or "expires_after[anchor]" in fields:
        expires_at = now + life_of(
            fields.get("expires_after[seconds]"),
            fields.get("expires_after[anchor]"),
            "expires_after",
        )
    return FileRecord(
        id=id,
        bytes=size,
        created_at=now,
        filename=name,
        purpose=purpose,
        expires_at=expires_at,
        key=key,
    )
