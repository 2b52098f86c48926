"""One JSON line for each request that has ended, in files of their own, for those who reckon.

A line never holds a key, and holds the text of prompts and answers only where that was asked for.
It is made and written by a thread: a disk that is slow or full costs lines, never time.
"""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from starlette.types import Scope

from appliance.keys import PREFIX
from appliance.log import RotatingFile
from appliance.metrics import Counter
from appliance.runtime.api.callers import Caller
from appliance.runtime.wire.text import TextDelta
from appliance.status import RequestRow

SCHEMA = "appliance.request/1"
MAX_WAITING = 4096
"""Lines that wait for the disk."""
MAX_WAITING_BYTES = 64 << 20
MAX_CONTENT = 1 << 20
"""Bytes of a body, and characters of its answer, that a line holds; of longer ones the length."""
SHOWN_PATH = 200
CLOSE_S = 5.0

_DIALECTS = (
    ("/v1/messages", "anthropic"),
    ("/v1/responses", "responses"),
    ("/generate_stream", "tgi"),
    ("/v1/", "openai"),
    ("/generate", "sglang"),
    ("/encode", "sglang"),
)
_REDACTED = "[redacted]"
_SECRET_FIELDS = frozenset(
    {
        "authorization", "proxy-authorization", "api_key", "apikey", "api-key", "x-api-key",
        "access_token", "refresh_token", "bearer_token", "auth_token", "client_secret", "password",
        "secret", "cookie",
    }
)  # fmt: skip
_OUR_KEY = re.compile(re.escape(PREFIX).encode() + rb"[A-Za-z0-9_-]+")
_LINE_ENDS = (
    ("\u0085".encode(), b"\\u0085"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)
"""What some readers take for the end of a line, though JSON lets it stand in a string."""

log = logging.getLogger(__name__)


class _Said:
    """What one choice of an answer has said; compact, for it is kept while the answer goes on."""

    __slots__ = ("_calls", "_reasoning", "_text")

    def __init__(self) -> None:
        self._text, self._reasoning = io.StringIO(), io.StringIO()
        self._calls: dict[int, tuple[io.StringIO, io.StringIO]] = {}

    def add(self, delta: TextDelta) -> None:
        self._text.write(delta.text)
        self._reasoning.write(delta.reasoning)
        for piece in delta.calls:
            name, arguments = self._calls.setdefault(piece.index, (io.StringIO(), io.StringIO()))
            name.write(piece.name)
            arguments.write(piece.arguments)

    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = {"text": self._text.getvalue()}
        if self._reasoning.tell():
            told["reasoning"] = self._reasoning.getvalue()
        if self._calls:
            told["calls"] = [
                {"name": name.getvalue(), "arguments": arguments.getvalue()}
                for name, arguments in self._calls.values()
            ]
        return told


class Entry:
    """What becomes of one HTTP request, noted by those through whose hands it goes.

    content: body and answer are kept. given: the keys that came with it, to be struck out.
    rows: its sequences that have ended. usage: as its answer counts tokens.
    """

    __slots__ = (
        "agent", "at", "began", "body", "caller", "content", "dialect", "ended", "error", "given",
        "held", "id", "method", "path", "rows", "said", "status", "stream", "usage",
    )  # fmt: skip

    def __init__(
        self,
        id: str,
        method: str,
        path: str,
        agent: str = "",
        content: bool = False,
        given: Sequence[bytes] = (),
    ) -> None:
        self.id, self.method, self.path, self.agent = id, method, path, agent
        self.content, self.given = content, given
        self.at, self.began = time.time(), time.monotonic()
        self.ended = self.began
        self.status, self.error, self.dialect, self.caller = 0, "", "", ""
        self.stream = False
        self.rows: list[RequestRow] = []
        self.usage: Callable[[], dict[str, Any]] | None = None
        self.body: bytes | None = None
        self.said: dict[int, _Said] = {}
        self.held = 0
        """Characters of the answer so far."""

    def heard(self, choice: int, delta: TextDelta) -> None:
        """A part of the answer, where content is kept."""
        self.held += len(delta.text) + len(delta.reasoning)
        self.held += sum(len(call.arguments) for call in delta.calls)
        if self.held <= MAX_CONTENT:
            if choice not in self.said:
                self.said[choice] = _Said()
            self.said[choice].add(delta)

    @property
    def size(self) -> int:
        """About how many bytes it takes while it waits."""
        return 1024 + len(self.body or b"") + self.held


def entry_of(scope: Scope) -> Entry | None:
    """The entry of the request that this scope is of."""
    found: Entry | None = scope["state"].get("entry")
    return found


def note_error(scope: Scope, code: str) -> None:
    entry = entry_of(scope)
    if entry is not None:
        entry.error = code


class RequestLog:
    """path: of the file that is written now; None: nothing is. content: with prompts and answers.
    model: the name it is served under. dropped: counts lines that were not written.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        content: bool,
        model: str,
        dropped: Counter,
        max_bytes: int = 16 << 20,
        kept: int = 4,
    ) -> None:
        self._model, self._dropped = model, dropped
        self._waiting: deque[tuple[Entry, int, RotatingFile]] = deque()
        self._waiting_bytes = 0
        self._news = threading.Condition()
        self._closing = False
        self._refused = False
        self._thread: threading.Thread | None = None
        self.write_to(path, content=content, max_bytes=max_bytes, kept=kept)

    def write_to(self, path: Path | None, *, content: bool, max_bytes: int, kept: int) -> None:
        """From the next request on; arguments as of the class."""
        with self._news:
            self.content = content and path is not None
            self._file = RotatingFile(path, max_bytes=max_bytes, kept=kept) if path else None

    def begin(
        self, id: str, method: str, path: str, agent: str = "", given: Sequence[bytes] = ()
    ) -> Entry:
        return Entry(id, method, path[:SHOWN_PATH], agent, self.content, given)

    def end(self, entry: Entry, status: int, caller: Caller | None) -> None:
        """Takes what is written from now on; returns at once. Only what was posted is told."""
        if entry.method not in ("POST", "PUT"):
            return
        entry.status, entry.ended = status, time.monotonic()
        entry.caller = caller.name if caller is not None else ""
        size = entry.size
        with self._news:
            if self._file is None:
                return
            entry.content = entry.content and self.content
            full = len(self._waiting) >= MAX_WAITING
            if full or self._closing or self._waiting_bytes + size > MAX_WAITING_BYTES:
                self._dropped.add(1.0, self._model.replace("|", "_"))
                return
            self._waiting.append((entry, size, self._file))
            self._waiting_bytes += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
                self._thread.start()
            self._news.notify()

    @property
    def waiting(self) -> int:
        """Lines that are not yet written."""
        return len(self._waiting)

    def close(self) -> None:
        """Writes what waits, as far as the disk lets us within a few seconds."""
        with self._news:
            self._closing = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        last: RotatingFile | None = None
        while True:
            with self._news:
                while not self._waiting and not self._closing:
                    self._news.wait()
                if not self._waiting:
                    break
                entry, size, file = self._waiting.popleft()
                self._waiting_bytes -= size
            if last is not None and last is not file:
                last.close()
            last = file
            self._write(file, entry)
        if last is not None:
            last.close()

    def _write(self, file: RotatingFile, entry: Entry) -> None:
        try:
            file.write(line_of(entry, self._model))
        except Exception as e:  # a line that cannot be made or written is not worth a request
            with self._news:
                self._dropped.add(1.0, self._model.replace("|", "_"))
            if not self._refused:
                log.warning("the request log %s cannot be written: %s", file.path, e)
            self._refused = True
            return
        if self._refused:
            log.info("the request log %s can be written again", file.path)
        self._refused = False


def line_of(entry: Entry, model: str) -> bytes:
    """The line with its end. Of several sequences, times are those of the quickest, and between
    tokens the mean."""
    usage = entry.usage() if entry.usage is not None else None
    rows = entry.rows
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "at": _iso(entry.at),
        "id": entry.id,
        "method": entry.method,
        "route": entry.path,
        "dialect": entry.dialect or _dialect(entry.path),
        "model": model,
        "key": entry.caller or None,
        "agent": entry.agent or None,
        "stream": entry.stream,
        "status": entry.status,
        "error": entry.error or None,
        "finish": [row.finish for row in rows],
        "prompt_tokens": usage["prompt_tokens"] if usage else None,
        "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"] if usage else None,
        "output_tokens": sum(row.output_tokens for row in rows) if usage else None,
        "queue_s": _rounded(min((r.queue_s for r in rows if r.queue_s is not None), default=None)),
        "ttft_s": _rounded(min((r.ttft_s for r in rows if r.ttft_s is not None), default=None)),
        "itl_s": _rounded(_mean([1.0 / r.tok_s for r in rows if r.tok_s])),
        "total_s": _rounded(entry.ended - entry.began),
    }
    line = msgspec.json.encode(told)
    if entry.content:
        content = _struck(msgspec.json.encode(_content(entry)), entry.given)
        line = line[:-1] + b"," + content[1:]
    for plain, escaped in _LINE_ENDS:
        line = line.replace(plain, escaped)
    return line + b"\n"


def _content(entry: Entry) -> dict[str, Any]:
    """request: the body as it was understood; answer: what each choice said. None where it was
    longer than a line holds."""
    told: dict[str, Any] = {"request": None, "answer": None}
    if entry.body is not None:
        told["request_bytes"] = len(entry.body)
        if len(entry.body) <= MAX_CONTENT:
            try:
                told["request"] = without_secrets(msgspec.json.decode(entry.body))
            except (msgspec.DecodeError, RecursionError):
                pass
    if entry.held <= MAX_CONTENT:
        told["answer"] = [entry.said[choice].told() for choice in sorted(entry.said)]
    return told


def without_secrets(value: Any) -> Any:
    """A body in which the fields that carry keys of other services say nothing."""
    if isinstance(value, list):
        return [without_secrets(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept: dict[str, Any] = {}
    for name, one in value.items():
        if isinstance(one, str) and name.lower() in _SECRET_FIELDS:
            kept[name] = _REDACTED
        elif name.lower() == "headers" and isinstance(one, dict):
            kept[name] = {header: _REDACTED for header in one}
        else:
            kept[name] = without_secrets(one)
    return kept


def _struck(text: bytes, given: Sequence[bytes]) -> bytes:
    """Without keys of ours, wherever they stand, and the one that came with the request."""
    text = _OUR_KEY.sub(_REDACTED.encode(), text)
    for key in given:
        written = msgspec.json.encode(key.decode("latin-1"))[1:-1]
        if len(written) >= 8:
            text = text.replace(written, _REDACTED.encode())
    return text


def _dialect(path: str) -> str:
    return next((word for start, word in _DIALECTS if path.startswith(start)), "other")


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
