"""TextDelta -> server-sent events. The usual chunk (text and nothing else) is glued from bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from appliance.errors import RequestError
from appliance.runtime.api.errors import error_body

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"

HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

encode = msgspec.json.Encoder().encode


def event(value: Any) -> bytes:
    return b"data: " + encode(value) + b"\n\n"


def error_event(error: RequestError) -> bytes:
    return b"data: " + error_body(error) + b"\n\n"


def named_event(value: dict[str, Any]) -> bytes:
    """An event whose `event:` line repeats its type, as Anthropic's and Responses' readers need."""
    kind: str = value["type"]
    return b"event: " + kind.encode() + b"\ndata: " + encode(value) + b"\n\n"


class Framing(NamedTuple):
    """What a dialect's stream ends with, and how it tells an error that comes after its start."""

    end: bytes
    failed: Callable[[RequestError], bytes]


DATA_EVENTS = Framing(DONE, lambda error: error_event(error) + DONE)


class PlainChunks:
    """Chunks that differ in their choice and text only.

    template: a chunk whose choice index is 0 and whose text is MARK, as plain data.
    """

    MARK = "\x00text\x00"

    def __init__(self, template: dict[str, Any], choices: int) -> None:
        self._around: list[tuple[bytes, bytes]] = []
        for index in range(choices):
            template["choices"][0]["index"] = index
            head, _, tail = event(template).partition(encode(self.MARK))
            self._around.append((head, tail))

    def chunk(self, choice: int, text: str) -> bytes:
        head, tail = self._around[choice]
        return head + encode(text) + tail
