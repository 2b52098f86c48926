"""The dashboard in a browser of this machine, through textual-serve: looks, and changes nothing.

It listens on loopback alone and answers only who came with the key that it printed: other users of
the machine and pages of other sites see nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import shlex
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp_jinja2
from aiohttp import web
from textual_serve.server import Server

from appliance.errors import UsageError

COOKIE = "appliance_top"
MOST_SESSIONS = 8
_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
_PAGES = Path(__file__).parent / "browser"
_CSP = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self' ws:; "
    "frame-ancestors 'none'"
)
_END_WITHIN_S = 2.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Dashboards(Server):
    """A process of its own for each page that is open. command: what it runs."""

    def __init__(self, command: Sequence[str], key: str) -> None:
        super().__init__(shlex.join(command), title="appliance top", templates_path=_PAGES)
        self._key = key
        self._sessions = 0

    async def application(self) -> web.Application:
        app = await self._make_app()
        app.middlewares.append(self._guard)
        return app

    async def on_startup(self, app: web.Application) -> None:
        """Says nothing: the command line has."""

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if urlsplit(f"//{request.host}").hostname not in _HOSTS:
            raise web.HTTPMisdirectedRequest(text="only this machine's own names are answered")
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{request.host}":
            raise web.HTTPForbidden(text="pages of other sites may not look")
        if self._is_key(request.query.get("key", "")):
            here = web.HTTPFound(request.path)
            here.set_cookie(COOKIE, self._key, httponly=True, samesite="Strict")
            raise here
        if not self._is_key(request.cookies.get(COOKIE, "")):
            raise web.HTTPForbidden(text="open the address that `appliance top --web` printed")
        response = await handler(request)
        if not response.prepared:
            response.headers["content-security-policy"] = _CSP
        return response

    def _is_key(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._key.encode())

    @aiohttp_jinja2.template("app_index.html")
    async def handle_index(self, request: web.Request) -> dict[str, Any]:
        return {
            "font_size": 16,
            "app_websocket_url": f"ws://{request.host}/ws",
            "application": {"name": self.title},
        }

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        if self._sessions >= MOST_SESSIONS:
            raise web.HTTPServiceUnavailable(text=f"{MOST_SESSIONS} pages are open already")
        self._sessions += 1
        try:
            return await super().handle_websocket(request)
        finally:
            self._sessions -= 1


def serve(options: Sequence[str], port: int, tell: Callable[[str], None]) -> None:
    """Until Ctrl-C. options: of `appliance top`. port: 0 takes a free one. tell: the address."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as e:
        listener.close()
        raise UsageError(
            f"port {port} of this machine cannot be used: {e.strerror}.",
            "Give --web-port another one, or leave it out.",
        ) from e
    key = secrets.token_urlsafe(16)
    command = [sys.executable, "-m", "appliance", "top", "--readonly", *options]
    with listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/?key={key}"
        asyncio.run(_serve(Dashboards(command, key), listener, lambda: tell(url)))


async def _serve(
    dashboards: Dashboards, listener: socket.socket, ready: Callable[[], None]
) -> None:
    runner = web.AppRunner(
        await dashboards.application(), access_log=None, shutdown_timeout=_END_WITHIN_S
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        ready()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
