"""The input file of a batch: one request a line."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from appliance.runtime.api.batches.records import Fault

MAX_LINES = 50_000
MAX_LINE = 16 << 20
MAX_CUSTOM_ID = 512
MAX_FAULTS = 20


class Line(Struct, frozen=True):
    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


_decoder = msgspec.json.Decoder(Line)


def read_line(path: Path, offset: int) -> Line:
    with path.open("rb") as file:
        file.seek(offset)
        return _decoder.decode(file.readline())


def offsets(path: Path) -> array[int]:
    """Where each line that is not blank starts."""
    return array("q", [offset for _, offset, _ in _lines(path)])


def examine(path: Path, endpoint: str, endpoints: Collection[str]) -> tuple[int, list[Fault]]:
    """(number of requests, what is wrong with them: at most MAX_FAULTS)"""
    faults: list[Fault] = []
    seen: set[bytes] = set()
    total = 0
    for number, _, data in _lines(path):
        total += 1
        if total > MAX_LINES:
            what = f"The file has more than {MAX_LINES:,} requests. Split it."
            return total, [Fault("too_many_requests", what)]
        fault = _fault_of(number, data, endpoint, endpoints, seen)
        if fault is not None:
            faults.append(fault)
            if len(faults) == MAX_FAULTS:
                break
    if not total:
        faults.append(Fault("empty_file", "The file holds no request."))
    return total, faults


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, offset, bytes) of each line that is not blank; a line that is too long
    comes as its first MAX_LINE + 1 bytes."""
    offset = number = 0
    with path.open("rb") as file:
        while data := file.readline(MAX_LINE + 1):
            number += 1
            start, offset = offset, offset + len(data)
            if len(data) > MAX_LINE and not data.endswith(b"\n"):
                while rest := file.readline(1 << 20):
                    offset += len(rest)
                    if rest.endswith(b"\n"):
                        break
            if data.strip():
                yield number, start, data


def _fault_of(
    number: int, data: bytes, endpoint: str, endpoints: Collection[str], seen: set[bytes]
) -> Fault | None:
    """seen: digests of the custom_ids before it; this one is added."""
    if len(data) > MAX_LINE:
        return Fault("line_too_long", f"The line is longer than {MAX_LINE >> 20} MiB.", number)
    try:
        line = _decoder.decode(data)
    except msgspec.ValidationError as e:
        return Fault("invalid_line", f"{e}.", number)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        return Fault("invalid_json_line", f"The line is not JSON: {e}.", number)
    if line.method != "POST":
        return Fault("invalid_method", f"method is {line.method[:20]!r}; it must be 'POST'.",
                     number, "method")  # fmt: skip
    if line.url not in endpoints:
        return Fault("invalid_url", f"url is {line.url[:60]!r}; it must be {endpoint!r}.",
                     number, "url")  # fmt: skip
    if line.url != endpoint:
        return Fault("mismatched_endpoint",
                     f"url is {line.url!r}, but the batch is for {endpoint!r}.",
                     number, "url")  # fmt: skip
    if not 1 <= len(line.custom_id) <= MAX_CUSTOM_ID:
        return Fault("invalid_custom_id",
                     f"custom_id has {len(line.custom_id)} characters; 1 to {MAX_CUSTOM_ID} are "
                     "taken.", number, "custom_id")  # fmt: skip
    digest = blake2b(line.custom_id.encode(), digest_size=16).digest()
    if digest in seen:
        return Fault("duplicate_custom_id",
                     f"custom_id {line.custom_id[:60]!r} stands on an earlier line too.",
                     number, "custom_id")  # fmt: skip
    seen.add(digest)
    return None
