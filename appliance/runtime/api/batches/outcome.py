"""How a batch's answers are written: OpenAI's line, and the two files of a batch that has ended."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from appliance.runtime.api.batches.calls import Answered
from appliance.runtime.api.batches.input import read_line
from appliance.runtime.api.batches.records import (
    OUTPUT_PURPOSE,
    BatchRecord,
    FileRecord,
    new_id,
)
from appliance.runtime.api.batches.store import Archive, Store
from appliance.runtime.api.sse import encode

Outcome = Literal["completed", "expired", "cancelled"]
_SLICE = 256


def answer_line(id: str, custom_id: str, answered: Answered) -> bytes:
    response = {
        "status_code": answered.status,
        "request_id": id,
        "body": msgspec.Raw(answered.body),
    }
    return encode({"id": id, "custom_id": custom_id, "response": response, "error": None}) + b"\n"


def expired_lines(source: Path, where: Sequence[int]) -> list[bytes]:
    """For the input's lines at these offsets."""
    error = {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    }
    out: list[bytes] = []
    for offset in where:
        custom_id = read_line(source, offset).custom_id
        id = new_id("batch_req_")
        line = {"id": id, "custom_id": custom_id, "response": None, "error": error}
        out.append(encode(line) + b"\n")
    return out


async def write_files(archive: Archive, record: BatchRecord) -> list[FileRecord]:
    """The file of answers and the file of errors, in the order of the input; none for no line."""
    assert record.output_file_id is not None and record.error_file_id is not None
    folder = archive.folder / "files"
    attempt = secrets.token_hex(
        4
    )  # a thread of a process that is ending may still write to its own
    parts = {
        True: folder / f"{record.output_file_id}.{attempt}.part",
        False: folder / f"{record.error_file_id}.{attempt}.part",
    }
    after = -1
    while rows := await archive.do(Store.lines, record.id, after, _SLICE):
        after = rows[-1][0]
        for ok, part in parts.items():
            lines = [answer for _, good, answer in rows if bool(good) == ok]
            if lines:
                await asyncio.to_thread(_append, part, lines)
    made: list[FileRecord] = []
    for part, word in zip(parts.values(), ("output", "error"), strict=True):
        if part.exists():
            made.append(await asyncio.to_thread(_keep, part, record, word))
    return made


def _append(part: Path, lines: Sequence[bytes]) -> None:
    with part.open("ab") as file:
        file.writelines(lines)


def _keep(part: Path, record: BatchRecord, word: str) -> FileRecord:
    with part.open("rb") as file:
        os.fsync(file.fileno())
        size = file.seek(0, os.SEEK_END)
    whole = part.with_name(part.name.partition(".")[0])
    os.replace(part, whole)
    now, kept = int(time.time()), record.output_expires_after_s
    return FileRecord(
        id=whole.name,
        bytes=size,
        created_at=now,
        filename=f"{record.id}_{word}.jsonl",
        purpose=OUTPUT_PURPOSE,
        expires_at=None if kept is None else now + kept,
        key=record.key,
    )
