"""The control HTTP on a Unix socket of mode 0600: a run's state, and what may be done to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from appliance import paths
from appliance.errors import UsageError
from appliance.supervisor.cancels import CancelDesk
from appliance.supervisor.events import KEPT, EventBook
from appliance.supervisor.lifecycle import Lifecycle
from appliance.supervisor.logs import Filter, LogBook
from appliance.supervisor.reload import Reloader
from appliance.supervisor.snapshot import HISTORY_S
from appliance.supervisor.view import View

_MAX_LINES = 100_000
_TOP_LINES = 500


class Steps:
    """What is told while the run stops, for those who asked for it to stop."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._news = asyncio.Event()

    def tell(self, text: str) -> None:
        self._told.append(text)
        self._news.set()

    async def follow(self, ended: asyncio.Event) -> AsyncIterator[str]:
        """Every step, old and new, until `ended`."""
        at = 0
        while True:
            while at < len(self._told):
                yield self._told[at]
                at += 1
            if ended.is_set():
                return
            self._news.clear()
            waits = [asyncio.create_task(self._news.wait()), asyncio.create_task(ended.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in waits:
                task.cancel()


class _Wanted(msgspec.Struct, frozen=True):
    """What a reload is asked for: settings with their values, and where these come from."""

    values: dict[str, Any] = {}
    answers: dict[str, dict[str, Any]] = {}


def make_app(
    run: Path,
    lifecycle: Lifecycle,
    view: View,
    book: LogBook,
    steps: Steps,
    reloader: Reloader,
    events: EventBook,
) -> FastAPI:
    cancels = CancelDesk(run)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    base = "/appliance/v1"

    @app.get(f"{base}/status")
    async def status() -> Response:
        return _json(view.status())

    @app.get(f"{base}/top")
    async def top(request: Request) -> Response:
        query = request.query_params
        try:
            history = int(query.get("history", str(HISTORY_S)))
            lines = max(0, min(_TOP_LINES, int(query.get("lines", "50"))))
        except ValueError:
            return _refuse(400, 2, "APL-USE-001", "history and lines are numbers.")
        return _json(view.top(history, lines))

    @app.post(f"{base}/cancel")
    async def cancel(request: Request) -> Response:
        try:
            asked = msgspec.json.decode(await request.body(), type=dict[str, str])["id"]
        except (msgspec.DecodeError, KeyError):
            return _refuse(400, 2, "APL-USE-001", "the body is not {'id': request}.")
        if not cancels.add(asked):
            return _refuse(404, 4, "APL-NOT-015", f"no live request has the id '{asked[:128]}'.")
        return _json({})

    @app.get(f"{base}/plan")
    async def plan() -> Response:
        try:
            return Response(paths.plan_file(run).read_bytes(), media_type="application/json")
        except OSError:
            return _refuse(404, 4, "APL-NOT-014", "this run has no plan file.")

    @app.get(f"{base}/logs")
    async def logs(request: Request) -> Response:
        query = request.query_params
        wanted = Filter(
            query.get("component", ""),
            query.get("level", ""),
            query.get("since", ""),
            query.get("until", ""),
            tuple(query.getlist("holds")),
        )
        try:
            count = max(0, min(_MAX_LINES, int(query.get("lines", "200"))))
        except ValueError:
            return _refuse(400, 2, "APL-USE-001", "lines is not a number.")
        if query.get("follow"):
            return StreamingResponse(_follow(book, count, wanted), media_type="text/plain")
        return PlainTextResponse("".join(line.text + "\n" for line in book.tail(count, wanted)))

    @app.get(f"{base}/events")
    async def happened(request: Request) -> Response:
        query = request.query_params
        after = query.get("after") or request.headers.get("last-event-id", "")
        try:
            history = max(0, int(query.get("history", str(KEPT))))
        except ValueError:
            return _refuse(400, 2, "APL-USE-001", "history is not a number.")
        stream = events.stream(after, history, query.get("follow", "1") != "0")
        headers = {"cache-control": "no-cache"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @app.post(f"{base}/down")
    async def down(request: Request) -> Response:
        body = await request.body()
        try:
            drain_s = msgspec.json.decode(body or b"{}", type=dict[str, float]).get("drain_s", 30.0)
        except msgspec.DecodeError:
            return _refuse(400, 2, "APL-USE-001", "the body is not {'drain_s': seconds}.")
        lifecycle.stop(drain_s)

        async def told() -> AsyncIterator[str]:
            async for text in steps.follow(lifecycle.ended):
                yield text + "\n"

        return StreamingResponse(told(), media_type="text/plain")

    @app.post(f"{base}/restart")
    async def restart(request: Request) -> Response:
        try:
            asked = msgspec.json.decode(await request.body() or b"{}", type=dict[str, bool])
        except msgspec.DecodeError:
            return _refuse(400, 2, "APL-USE-001", "the body is not {'rolling': true}.")
        if lifecycle.failure is not None:
            return _refuse(409, 10, lifecycle.failure.code, lifecycle.failure.message)
        lifecycle.restart(rolling=asked.get("rolling", False))
        return _json({})

    @app.post(f"{base}/reload")
    async def reload(request: Request) -> Response:
        try:
            asked = msgspec.json.decode(await request.body() or b"{}", type=_Wanted)
        except msgspec.DecodeError:
            return _refuse(400, 2, "APL-USE-001", "the body is not {'values': {setting: value}}.")
        if lifecycle.state.state in ("draining", "stopped"):
            return _refuse(409, 3, "APL-RUN-001", "this run is being stopped.")
        try:
            return _json(await reloader.apply(asked.values, asked.answers))
        except UsageError as e:
            return _refuse(400, 2, e.code, e.message)

    return app


class ControlServer:
    """Serves the app on the run's control socket until closed."""

    def __init__(self, run: Path, app: FastAPI) -> None:
        self._path = paths.control_socket(run)
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._server: _Server | None = None

    async def start(self) -> None:
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        sock = _private_socket(self._path)
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[sock]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._path.unlink(missing_ok=True)


class _Server(uvicorn.Server):  # type: ignore[misc]
    """Leaves signals to the supervisor."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _private_socket(path: Path) -> socket.socket:
    """Listens at `path`, for this user alone. The caller holds the run's lock, so what lies there
    is stale."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    path.chmod(0o600)  # nobody can connect before it listens
    sock.listen(64)
    sock.setblocking(False)
    return sock


async def _follow(book: LogBook, count: int, wanted: Filter) -> AsyncIterator[str]:
    queue = book.follow()
    try:
        for line in book.tail(count, wanted):
            yield line.text + "\n"
        while True:
            new = await queue.get()
            if new is None:
                return
            if wanted.takes(new):
                yield new.text + "\n"
    finally:
        book.unfollow(queue)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _refuse(status: int, exit_code: int, code: str, message: str) -> Response:
    error = {"message": message, "hint": "", "code": code, "exit_code": exit_code}
    return Response(
        msgspec.json.encode({"error": error}), status_code=status, media_type="application/json"
    )
