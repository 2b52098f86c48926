"""The HTTP application of a frontend: every route in one list, and the process around it."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypedDict

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance import paths
from appliance.errors import ApplianceError, RequestError, UsageError
from appliance.runtime.api import schema
from appliance.runtime.api.accept import Shares
from appliance.runtime.api.admin import Admin, Snapshots
from appliance.runtime.api.answer import CallerGone
from appliance.runtime.api.batches.room import BatchRoom
from appliance.runtime.api.callers import KeyDesk
from appliance.runtime.api.chat import ChatCompletions
from appliance.runtime.api.completions import Completions
from appliance.runtime.api.dialects import dialect_routes
from appliance.runtime.api.engines import EnginePeer
from appliance.runtime.api.errors import as_request_error, error_body, error_headers
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.gate import Gate, given_keys
from appliance.runtime.api.generate import SHOWN_CLIENT
from appliance.runtime.api.models import Models
from appliance.runtime.api.native.abort import Aborts
from appliance.runtime.api.openapi import document
from appliance.runtime.api.request_log import RequestLog, note_error
from appliance.runtime.api.series import Series
from appliance.runtime.api.server import HttpServer, raise_file_limit
from appliance.runtime.api.state import CancelFile, ConfigFile, RunStateFile
from appliance.runtime.api.tgi import DIALECT
from appliance.runtime.api.window import BASE, Window
from appliance.runtime.config import RuntimeConfig, ServeConfig
from appliance.runtime.wire.text import TextRoom
from appliance.status import Beat, Phase, Ready, StatusPipe

PUBLISH_S = 0.25
BEAT_S = 1.0
LONGEST_ID = 128
CLIENT_LEFT = 499
"""Told to nobody: the client has gone before its answer."""
UNANSWERED = 500
"""Of a request that ended without one, such as at the end of a drain that took too long."""
COUNTED = ("/v1/", "/generate", "/encode", "/classify", "/score", "/rerank")
"""Beginnings of the routes that ask the model; so does `/` itself."""

_ID = re.compile(r"[^A-Za-z0-9._:-]")

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


def routes(
    frontend: Frontend, models: Models, admin: Admin, aborts: Aborts, settings: ConfigFile
) -> list[tuple[str, str, Endpoint, type | None]]:
    """(method, path, endpoint, body)"""
    chat = ChatCompletions(frontend, models)
    completions = Completions(frontend, models)
    control = paths.control_socket(Path(settings.config.dir))
    window = Window(control, lambda: frontend.draining)
    return [
        ("POST", "/v1/chat/completions", chat.post, schema.ChatRequest),
        ("POST", "/v1/completions", completions.post, schema.CompletionRequest),
        *dialect_routes(frontend, models, chat, completions, aborts, settings),
        ("GET", "/v1/models", models.list, None),
        ("GET", "/v1/models/{model:path}", models.show, None),
        ("POST", "/tokenize", admin.tokenize, schema.TokenizeRequest),
        ("POST", "/detokenize", admin.detokenize, schema.DetokenizeRequest),
        ("GET", "/tokenizer_info", admin.tokenizer_info, None),
        ("GET", "/health", admin.health, None),
        ("GET", "/readyz", admin.health, None),
        ("GET", "/livez", admin.live, None),
        ("GET", "/startupz", admin.startup, None),
        ("GET", "/metrics", admin.metrics, None),
        ("GET", "/version", admin.version, None),
        ("GET", f"{BASE}/top", window.top, None),
        ("GET", f"{BASE}/plan", window.plan, None),
        ("GET", f"{BASE}/events", window.events, None),
        ("GET", "/", admin.root, None),
    ]


class RequestIds:
    """Gives every request its id, answers with it, counts and writes down how requests end."""

    def __init__(self, app: ASGIApp, series: Series, requests: RequestLog) -> None:
        self._app, self._series, self._requests = app, series, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = name
        headers = scope["headers"]
        entry = self._requests.begin(
            name, scope["method"], scope["path"], _agent(headers), given_keys(headers)
        )
        state["entry"] = entry
        shown = [(b"x-request-id", name.encode()), (b"request-id", name.encode())]
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *shown]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            gone = state.get("cancelled", False)
            status = CLIENT_LEFT if gone else status or UNANSWERED
            path = scope["path"]
            if scope["method"] == "POST" and (path == "/" or path.startswith(COUNTED)):
                outcome = "cancelled" if gone else _class_of(status)
                self._series.requests.add(1.0, self._series.model, outcome)
                if entry.error:
                    self._series.errors.add(1.0, self._series.model, entry.error)
            entry.dialect = "tgi" if state.get("dialect") == DIALECT else ""
            self._requests.end(entry, status, state.get("caller"))


def _agent(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The program that asks, as it says."""
    found = next((value for name, value in headers if name == b"user-agent"), b"")
    return found.decode("latin-1").split(" ", 1)[0][:SHOWN_CLIENT]


def _class_of(status: int) -> str:
    if status < 400:
        return "2xx"
    return "4xx" if status < 500 else "5xx"


def _request_id(scope: Scope) -> str:
    for key, value in scope["headers"]:
        if key == b"x-request-id":
            given = _ID.sub("", value.decode("latin-1"))[:LONGEST_ID]
            if given:
                return given
    return secrets.token_hex(12)


async def _refuse(request: Request, error: Exception) -> Response:
    """Any exception of an endpoint as its response."""
    if isinstance(error, CallerGone):
        request.scope["state"]["cancelled"] = True
        return Response(status_code=CLIENT_LEFT)
    if isinstance(error, HTTPException):
        what = f"{request.method} {request.scope['path'][:200]}: {error.detail}"
        error = RequestError(what, status=error.status_code, code="no_such_route")
    elif not isinstance(error, ApplianceError):
        log.error("request %s", request.scope["state"]["request_id"], exc_info=error)
    refused = as_request_error(error)
    note_error(request.scope, refused.code)
    dialect = request.scope["state"].get("dialect", request.scope["path"])
    response = Response(error_body(refused, dialect), refused.status, media_type="application/json")
    response.raw_headers += error_headers(refused)
    if refused.status == 413:
        response.raw_headers.append((b"connection", b"close"))
    return response


class _Guard:
    """Turns exceptions of the endpoints into responses, inside the request's id."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def answer(self, request: Request) -> Response:
        try:
            return await self._endpoint(request)
        except Exception as e:
            return await _refuse(request, e)


def build_app(
    frontend: Frontend,
    models: Models,
    admin: Admin,
    batches: BatchRoom,
    aborts: Aborts,
    requests: RequestLog,
    settings: ConfigFile,
    desk: KeyDesk,
) -> ASGIApp:
    app = FastAPI(
        title="appliance", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    table = [*routes(frontend, models, admin, aborts, settings), *batches.routes()]
    batches.answer_by({path: _Guard(endpoint).answer for _, path, endpoint, _ in table})
    shown = document(table)

    async def openapi(request: Request) -> Response:
        return Response(shown, media_type="application/json")

    for method, path, endpoint, _ in [*table, ("GET", "/openapi.json", openapi, None)]:
        app.add_route(path, _Guard(endpoint).answer, methods=[method])
    app.add_exception_handler(HTTPException, _refuse)
    serve = settings.config.serve
    gate = Gate(app, "" if serve.uds else serve.host, desk)
    return RequestIds(gate, frontend.series, requests)


class _LogFiles(TypedDict):
    path: Path | None
    content: bool
    max_bytes: int
    kept: int


def _log_files(config: RuntimeConfig, index: int) -> _LogFiles:
    serve = config.serve
    return _LogFiles(
        path=None if serve.request_log == "off" else paths.request_log(config.run, index),
        content=serve.request_log == "content",
        max_bytes=serve.request_log_mib << 20,
        kept=serve.request_log_files - 1,
    )


def _keys_of(serve: ServeConfig) -> Path | None:
    return Path(serve.keys_file) if serve.keys_file and not serve.no_auth else None


class FrontendProcess:
    """A frontend with its HTTP server; the caller decides when it drains."""

    def __init__(
        self, config: RuntimeConfig, text: TextRoom, index: int, listener: socket.socket
    ) -> None:
        run = Path(config.dir)
        series = Series(config.model.id)
        engines = [
            EnginePeer(r, paths.engine_socket(run, r), index) for r in range(config.engine.replicas)
        ]
        state = RunStateFile(paths.run_state(run))
        context = config.model.context
        self.frontend = Frontend(
            text, engines, state, series,
            index=index, context=context, max_queue=config.serve.max_queue,
            keep_alive_s=config.serve.keep_alive_comment_s,
        )  # fmt: skip
        self._settings = ConfigFile(paths.config_file(run), config)
        self._desk = KeyDesk(paths.key_usage(run), config.serve.frontends, index)
        self._desk.ask_for(_keys_of(config.serve))
        self._cancels = CancelFile(paths.cancels(run))
        self.snapshots = Snapshots(self.frontend, run, config.serve.frontends)
        self._models = Models(config.model, context)
        admin = Admin(self.frontend, self._models, self.snapshots, context)
        self._requests = RequestLog(
            **_log_files(config, index), model=config.model.id, dropped=series.log_dropped
        )
        self.batches = BatchRoom(
            self.frontend, paths.batches_dir(config.run), config.serve.frontends, self._requests
        )
        self._aborts = Aborts(self.frontend, run, config.serve.frontends)
        app = build_app(
            self.frontend, self._models, admin, self.batches, self._aborts, self._requests,
            self._settings, self._desk,
        )  # fmt: skip
        shares = Shares(paths.connections(run), config.serve.frontends, index)
        self.server = HttpServer(app, listener, shares, config.serve.max_connections_per_address)

    async def start(self) -> None:
        self.frontend.start()
        await self.server.start()
        self.batches.start()

    async def drain(self) -> None:
        """Refuses what is new and waits until every answer is out. Has no deadline of its own."""
        self.frontend.draining = True
        await self.batches.pause()
        while self.frontend.live or self.server.busy:
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        await self.server.stop()
        await self.batches.close()
        await self.frontend.close()
        self.snapshots.publish(at_least_every_s=0.0)
        await asyncio.to_thread(self._requests.close)

    def look_at_settings(self) -> None:
        """Takes over what a reload has changed, and tells which settings are in force."""
        config = self._settings.fresh()
        if config is not None:
            self._apply(config)
        if self._settings.version != self.snapshots.config_version:
            self.snapshots.config_version = self._settings.version
            self.snapshots.publish(at_least_every_s=0.0)

    def _apply(self, config: RuntimeConfig) -> None:
        """Requests that are under way go on as they began."""
        serve = config.serve
        logging.getLogger().setLevel(config.log_level.upper())
        self.frontend.max_queue = serve.max_queue
        self.frontend.keep_alive_s = serve.keep_alive_comment_s
        self.server.limit(serve.max_connections_per_address)
        self._models.rename(config.model)
        self._requests.write_to(**_log_files(config, self.frontend.index))
        try:
            self._desk.ask_for(_keys_of(serve))
        except UsageError as e:
            log.error("%s The keys stay as they were.", e.message)
        log.info("frontend %d goes by the reloaded settings", self.frontend.index)

    async def housekeeping(self, status: StatusPipe) -> None:
        """Until cancelled: snapshots, what others cancel, the date, and signs of life."""
        beaten = 0.0
        while True:
            for name in self._cancels.fresh():
                self.frontend.cancel_named(name)
            self._aborts.look()
            self.look_at_settings()
            self.snapshots.publish()
            if time.monotonic() - beaten >= BEAT_S:
                beaten = time.monotonic()
                self.server.tick()
                status.send(Beat(steps=self.frontend.messages))
            await asyncio.sleep(PUBLISH_S)


async def serve(
    config: RuntimeConfig,
    text: TextRoom,
    index: int,
    listen_fd: int,
    status: StatusPipe,
    stop: asyncio.Event | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT (or `stop`), then until the live requests have ended."""
    status.send(Phase(name="warmup", limit_s=30.0))
    stop = stop or asyncio.Event()
    raise_file_limit()
    async with AsyncExitStack() as stack:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
            stack.callback(loop.remove_signal_handler, number)
        process = FrontendProcess(config, text, index, socket.socket(fileno=listen_fd))
        await process.start()
        stack.push_async_callback(process.stop)
        keeper = asyncio.create_task(process.housekeeping(status))
        stack.callback(keeper.cancel)
        status.send(Ready(facts={"frontend": index}))
        log.info("frontend %d accepts requests", index)
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait({waiting, keeper}, return_when=asyncio.FIRST_COMPLETED)
        if keeper.done():
            waiting.cancel()
            keeper.result()
        log.info("frontend %d drains %d requests", index, process.frontend.live)
        await process.drain()
