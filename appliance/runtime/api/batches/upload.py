"""An uploaded file on its way from a multipart body to the disk."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from appliance.errors import RequestError
from appliance.runtime.api.answer import CallerGone

MAX_FILE = 200 << 20
MAX_FIELDS = 16
MAX_FIELD = 4 << 10
_AROUND = 64 << 10
"""Bytes of a multipart body beside the file: boundaries, heads, other fields."""
_UNSEEN = re.compile(r"[\x00-\x1f\x7f]")


class Upload(NamedTuple):
    """fields: the other parts of the form, by name."""

    name: str
    bytes: int
    fields: dict[str, str]


async def take_upload(request: Request, target: Path) -> Upload:
    """Writes the part named `file` to `target`, on disk when this returns. RequestError 400, 413
    or 415; CallerGone when the client leaves before all has come."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise RequestError(
            f"the body's content-type is {kind[:60]!r}; send multipart/form-data with the parts "
            "'file' and 'purpose'.",
            status=415,
            code="unsupported_media_type",
        )
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > MAX_FILE + _AROUND:
        raise _too_large()
    parser = MultiPartParser(
        request.headers,
        _bounded(request),
        max_files=1,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD,
    )
    try:
        form = await parser.parse()
    except ClientDisconnect as e:
        raise CallerGone from e
    except MultiPartException as e:
        raise RequestError(f"The form cannot be read: {e.message}", code="invalid_form") from e
    except (LookupError, ValueError) as e:
        raise RequestError("The form cannot be read: its head is malformed.",
                           code="invalid_form") from e  # fmt: skip
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise RequestError("The form has no part 'file' with a filename.", param="file")
        size = await asyncio.to_thread(_keep, file, target)
        fields = {k: v for k, v in form.multi_items() if isinstance(v, str)}
        name = _UNSEEN.sub("", file.filename or "")[:255] or "file"
        return Upload(name, size, fields)
    finally:
        await form.close()


async def _bounded(request: Request) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_FILE + _AROUND:
            raise _too_large()
        yield chunk


def _keep(file: UploadFile, target: Path) -> int:
    file.file.seek(0)
    with target.open("wb") as out:
        shutil.copyfileobj(file.file, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
        return out.tell()


def _too_large() -> RequestError:
    return RequestError(
        f"the file is larger than {MAX_FILE >> 20} MiB; split it.",
        status=413,
        code="file_too_large",
        param="file",
    )
