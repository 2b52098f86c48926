"""What the generating routes share: from a submitted request to its HTTP response.

The first delta is waited for before the status is sent, so that what goes wrong until then is a
real status; what goes wrong later is an event in the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from appliance.errors import RequestError
from appliance.runtime.api.answer import Answer, CallerGone, join
from appliance.runtime.api.errors import as_request_error
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.request_log import entry_of, note_error
from appliance.runtime.api.sse import COMMENT, DATA_EVENTS, HEADERS, Framing
from appliance.runtime.wire.request import TokenRequest
from appliance.runtime.wire.text import TextDelta, TextRequest

MAX_BODY = 16 << 20
SHOWN_CLIENT = 40


class Usage:
    """Tokens of one answer. n: choices of each prompt; a prompt counts once."""

    def __init__(self, prompt_tokens: int, n: int) -> None:
        self._prompt_tokens, self._n = prompt_tokens, n
        self._completion_tokens = 0
        self._cached = 0
        self._thoughts = 0

    def add(self, choice: int, delta: TextDelta) -> None:
        self._completion_tokens += delta.tokens
        self._thoughts += delta.reasoning_tokens
        if delta.cached > 0 and choice % self._n == 0:
            self._cached += delta.cached

    def shown(self) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }
        if self._thoughts:
            shown["completion_tokens_details"] = {"reasoning_tokens": self._thoughts}
        return shown


class Form(Protocol):
    """How a route writes its answer. A form belongs to one answer."""

    def chunk(self, choice: int, delta: TextDelta, usage: dict[str, Any] | None) -> bytes:
        """One event; empty when there is nothing to show yet."""

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """The event after the last choice."""

    def body(self, choices: Sequence[TextDelta], usage: dict[str, Any]) -> bytes:
        """The whole answer. choices: everything each choice got, as one delta."""


class Exchange:
    """One generating request that was sent to the engines, until its response is out."""

    def __init__(
        self,
        frontend: Frontend,
        request: Request,
        answer: Answer,
        tokens: Sequence[TokenRequest],
        n: int,
    ) -> None:
        self.tokens = tokens
        self.answer = answer
        self._frontend = frontend
        self._rids = [t.rid for t in tokens]
        prompts = [len(t.prompt) // 4 for t in tokens[::n]]
        self.usage = Usage(sum(prompts), n)
        self._watch = asyncio.create_task(_until_gone(request.receive, answer))
        self._entry = entry_of(request.scope)
        if self._entry is not None:
            self._entry.rows, self._entry.usage = answer.ended, self.usage.shown

    def count(self, choice: int, delta: TextDelta) -> None:
        """Takes note of what is handed on."""
        self.usage.add(choice, delta)
        if self._entry is not None and self._entry.content:
            self._entry.heard(choice, delta)

    def close(self) -> None:
        """Sequences still live are aborted."""
        self._watch.cancel()
        if self.answer.open:
            self._frontend.cancel(self._rids)

    async def whole(self, form: Form) -> Response:
        got: list[list[TextDelta]] = [[] for _ in self.tokens]
        try:
            while self.answer.open:
                for choice, delta in await self.answer.take():
                    self.count(choice, delta)
                    got[choice].append(delta)
        finally:
            self.close()
        joined = [d[0] if len(d) == 1 else join(d) for d in got]
        body = form.body(joined, self.usage.shown())
        return Response(body, media_type="application/json")

    async def stream(
        self,
        form: Form,
        usage_at_end: bool,
        usage_always: bool,
        keep_alive_s: float,
        framing: Framing = DATA_EVENTS,
    ) -> Response:
        """Raises what ends the request before its first token."""
        try:
            first = await self.answer.take()
        except BaseException:
            self.close()
            raise
        if self._entry is not None:
            self._entry.stream = True
        return EventStream(self, form, first, usage_at_end, usage_always, keep_alive_s, framing)


class EventStream(Response):
    """Sends events as they come; what piled up behind a slow socket leaves as one."""

    def __init__(
        self,
        exchange: Exchange,
        form: Form,
        first: list[tuple[int, TextDelta]],
        usage_at_end: bool,
        usage_always: bool,
        keep_alive_s: float,
        framing: Framing,
    ) -> None:
        self._exchange, self._form, self._first = exchange, form, first
        self._usage_at_end, self._usage_always = usage_at_end, usage_always
        self._keep_alive_s = keep_alive_s
        self._framing = framing
        self.status_code = 200
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange, answer = self._exchange, self._exchange.answer
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            data = self._events(self._first)
            while answer.open:
                if data:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                data = await self._next()
            if self._usage_at_end:
                data += self._form.usage_chunk(exchange.usage.shown())
            data += self._framing.end
            await send({"type": "http.response.body", "body": data, "more_body": False})
        except CallerGone:
            scope["state"]["cancelled"] = True
        except RequestError as e:
            note_error(scope, e.code)
            body = self._framing.failed(e)
            await send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            exchange.close()

    async def _next(self) -> bytes:
        answer = self._exchange.answer
        if not self._keep_alive_s:
            return self._events(await answer.take())
        try:
            async with asyncio.timeout(self._keep_alive_s):
                fresh = await answer.take()
        except TimeoutError:
            return COMMENT
        return self._events(fresh)

    def _events(self, fresh: list[tuple[int, TextDelta]]) -> bytes:
        usage, form = self._exchange.usage, self._form
        out: list[bytes] = []
        for choice, delta in fresh:
            self._exchange.count(choice, delta)
            out.append(form.chunk(choice, delta, usage.shown() if self._usage_always else None))
        return out[0] if len(out) == 1 else b"".join(out)


async def send_to_engines(
    frontend: Frontend,
    request: Request,
    asked: Sequence[TextRequest],
    names: Sequence[str] = (),
    takes_aborts: bool = False,
) -> Exchange:
    """names: of each that is asked, where its caller has named it. takes_aborts: as in Answer."""
    n = len(asked[0].rids)
    answer = Answer(sum(len(a.rids) for a in asked), takes_aborts)
    state = request.scope["state"]
    agent = request.headers.get("user-agent", "").split(" ", 1)[0][:SHOWN_CLIENT]
    names = names or [state["request_id"]] * len(asked)
    tokens = await frontend.submit(asked, answer, names, agent, state["caller"])
    return Exchange(frontend, request, answer, tokens, n)


async def read_body(request: Request) -> bytes:
    """RequestError 413 or 415; CallerGone when the client leaves before its body has come."""
    kind = request.headers.get("content-type", "application/json").split(";", 1)[0].strip()
    if kind.lower() != "application/json":
        raise RequestError(
            f"the body's content-type is {kind[:60]!r}; send JSON with "
            "'content-type: application/json'.",
            status=415,
            code="unsupported_media_type",
        )
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise RequestError(
            f"the body's content-encoding is {coding[:60]!r}; send it as it is.",
            status=415,
            code="unsupported_media_type",
        )
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > MAX_BODY:
        raise _too_large()
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise CallerGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise _too_large()
        more = message.get("more_body", False)
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    entry = entry_of(request.scope)
    if entry is not None and entry.content:
        entry.body = data
    return data


def _too_large() -> RequestError:
    return RequestError(
        f"the body is larger than {MAX_BODY >> 20} MiB.", status=413, code="body_too_large"
    )


async def _until_gone(receive: Receive, answer: Answer) -> None:
    """The only way to learn that the client left: sends to a closed socket say nothing."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
        answer.fail(CallerGone())
    except Exception as e:
        answer.fail(as_request_error(e))
