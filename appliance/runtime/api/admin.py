"""Health, metrics, version, and the tokenizer's routes."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from appliance import paths
from appliance.errors import RequestError
from appliance.metrics import Dump
from appliance.runtime.api.chat import make_chat
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.generate import read_body
from appliance.runtime.api.models import Models
from appliance.runtime.api.schema import DetokenizeRequest, TokenizeRequest, decode_body
from appliance.runtime.api.series import exposition, newest
from appliance.runtime.api.sse import encode
from appliance.runtime.wire.text import Chat
from appliance.status import FrontendSnapshot, RunState, publish

JSON = "application/json"

_PAGE = """<!doctype html><meta charset="utf-8"><title>appliance</title>
<h1>appliance</h1><p>An OpenAI-compatible server. Point a client at <code>/v1</code>.</p><ul>
<li><a href="/v1/models">/v1/models</a><li><a href="/health">/health</a>
<li><a href="/metrics">/metrics</a><li><a href="/openapi.json">/openapi.json</a>
<li><a href="/version">/version</a></ul>
"""


class Snapshots:
    """This frontend's FrontendSnapshot for others, and theirs for /metrics."""

    def __init__(self, frontend: Frontend, run: Path, frontends: int) -> None:
        self._frontend, self._run = frontend, run
        self._others = [i for i in range(frontends) if i != frontend.index]
        self._last: tuple[int, int] | None = None
        self._at = 0.0
        self.config_version = 0

    def publish(self, at_least_every_s: float = 1.0) -> None:
        """Writes when something has changed, or when the last one is old."""
        frontend, now = self._frontend, time.monotonic()
        frontend.series.live.set(float(frontend.live), frontend.series.model)
        seen = (frontend.messages, frontend.live)
        if seen == self._last and now - self._at < at_least_every_s:
            return
        self._last, self._at = seen, now
        snapshot = FrontendSnapshot(
            index=frontend.index,
            pid=os.getpid(),
            at=time.time(),
            live=frontend.live,
            requests=frontend.rows(),
            finished=frontend.finished_rows(),
            clients=frontend.client_rows(),
            engines=frontend.states(),
            metrics=frontend.series.registry.dump(),
            config_version=self.config_version,
        )
        publish(paths.frontend_snapshot(self._run, frontend.index), snapshot)

    def others(self) -> list[FrontendSnapshot]:
        out: list[FrontendSnapshot] = []
        for i in self._others:
            try:
                data = paths.frontend_snapshot(self._run, i).read_bytes()
                out.append(msgspec.json.decode(data, type=FrontendSnapshot))
            except (OSError, msgspec.DecodeError):
                continue
        return out

    def supervisor(self) -> Dump:
        """What the supervisor measures; nothing where there is none."""
        try:
            data = paths.supervisor_metrics(self._run).read_bytes()
            return msgspec.json.decode(data, type=Dump)
        except (OSError, msgspec.DecodeError):
            return {}


class Admin:
    def __init__(
        self, frontend: Frontend, models: Models, snapshots: Snapshots, context: int
    ) -> None:
        self._frontend, self._models, self._snapshots = frontend, models, snapshots
        self._context = context

    async def root(self, request: Request) -> Response:
        return Response(_PAGE, media_type="text/html")

    async def version(self, request: Request) -> Response:
        return Response(encode({"version": version("appliance")}), media_type=JSON)

    # Health: never sends anything to an engine

    async def health(self, request: Request) -> Response:
        """200 only while new requests can be computed at once."""
        word = self._word()
        state = self._frontend.state.read()
        body: dict[str, Any] = {"status": word}
        known = request.scope["state"]["caller"].known
        if known:
            body |= _how_far(state)
        if known and state.failure:
            body["failure"] = state.failure
        return Response(encode(body), 200 if word == "ok" else 503, media_type=JSON)

    async def live(self, request: Request) -> Response:
        """False only when starting this run again is the cure: an engine that is being started
        again is not that."""
        state = self._frontend.state.read().state
        alive = state != "failed"
        return Response(encode({"alive": alive, "state": state}), 200 if alive else 503, None, JSON)

    async def startup(self, request: Request) -> Response:
        state = self._frontend.state.read()
        started = state.reached_ready
        body: dict[str, Any] = {"started": started}
        if request.scope["state"]["caller"].known:
            body |= _how_far(state)
        return Response(encode(body), 200 if started else 503, None, JSON)

    def _word(self) -> str:
        state = self._frontend.state.read().state
        if state == "failed":
            return "failed"
        if self._frontend.draining or state in ("draining", "stopped"):
            return "draining"
        if state == "degraded":
            return "degraded"
        connected = all(e.connected for e in self._frontend.engines)
        if state == "ready":
            return "ok" if connected else "degraded"
        return "loading"

    async def metrics(self, request: Request) -> Response:
        frontend = self._frontend
        frontend.series.live.set(float(frontend.live), frontend.series.model)
        others = self._snapshots.others()
        states = [*frontend.states(), *(s for o in others for s in o.engines)]
        dumps = [frontend.series.registry.dump(), *(o.metrics for o in others)]
        dumps.append(self._snapshots.supervisor())
        text = exposition(dumps, newest(states), frontend.series.model)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    # The tokenizer

    async def tokenize(self, request: Request) -> Response:
        body = decode_body(TokenizeRequest, await read_body(request))
        self._models.check(body.model)
        prompt: str | Chat
        if body.messages is not None:
            prompt = make_chat(
                body.messages,
                body.tools,
                body.chat_template_kwargs,
                body.add_generation_prompt,
                body.continue_final_message,
            )
        elif body.prompt is not None:
            prompt = body.prompt
        else:
            raise RequestError("give prompt or messages.", param="prompt")
        ids = await self._frontend.text.encode(prompt, body.add_special_tokens is not False)
        out: dict[str, Any] = {
            "count": len(ids),
            "max_model_len": self._context,
            "tokens": ids,
            "token_strs": self._frontend.text.pieces(ids) if body.return_token_strs else None,
        }
        return Response(encode(out), media_type=JSON)

    async def detokenize(self, request: Request) -> Response:
        body = decode_body(DetokenizeRequest, await read_body(request))
        self._models.check(body.model)
        self._frontend.text.pieces(body.tokens)
        text = await self._frontend.text.decode(body.tokens, bool(body.skip_special_tokens))
        return Response(encode({"prompt": text}), media_type=JSON)

    async def tokenizer_info(self, request: Request) -> Response:
        return Response(encode(self._frontend.text.facts()), media_type=JSON)


def _how_far(state: RunState) -> dict[str, Any]:
    """Phase and progress of a start, and how long it will take where that is known."""
    body: dict[str, Any] = {"phase": state.phase, "progress": state.progress}
    remaining = state.ready_at - time.time()
    if remaining > 0:
        body["remaining_s"] = round(remaining, 1)
    return body
