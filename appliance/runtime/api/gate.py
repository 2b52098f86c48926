"""The gate before every route: is it our name, is it our page, who is it, may they now.

Judges by the path that the router will use, before a byte of the body is read.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import RequestError
from appliance.runtime.api.callers import ANYBODY, STRANGER, Caller, KeyDesk, Keyring, wall_clock
from appliance.runtime.api.errors import error_body, error_headers
from appliance.runtime.api.request_log import note_error
from appliance.runtime.config import is_loopback

OPEN = frozenset({"/livez", "/readyz", "/startupz", "/health"})
"""What probes ask; answers without a key, in one word then."""
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
UNREAD_BODY = 64 << 10
"""Bytes of a body that are read on after a refusal; with more the connection is closed."""


def host_name(value: str) -> str:
    """The name in a Host header: small letters, no port, no brackets; empty if malformed."""
    name, colon, port = value.strip().lower().rpartition(":")
    if not colon or "]" in port:
        name, port = value.strip().lower(), ""
    if port and not (port.isascii() and port.isdigit()):
        return ""
    if name.startswith("[") and name.endswith("]"):
        return name[1:-1]
    return "" if any(c in name for c in "[]:/@?# ") else name.removesuffix(".")


class Gate:
    """host: the address that is listened on; empty for a Unix socket, which no page reaches."""

    def __init__(self, app: ASGIApp, host: str, desk: KeyDesk) -> None:
        self._app, self._desk = app, desk
        local = is_loopback(host)
        self._names = LOCAL_NAMES | {host.lower().strip("[]")} if local else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope["state"]["caller"] = self._admit(scope)
        except RequestError as e:
            note_error(scope, e.code)
            await _refusal(scope, e)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> Caller:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        host = _first(headers, b"host")
        if self._names is not None and host_name(host) not in self._names:
            raise RequestError(
                f"this server does not answer to the host {host[:100]!r}; it answers to "
                f"{', '.join(sorted(self._names))}.",
                status=421,
                code="misdirected_request",
            )
        origin = _first(headers, b"origin")
        if origin and origin.partition("://")[2].lower() != host.lower():
            raise RequestError(
                f"pages of {origin[:100]!r} may not call this server from a browser.",
                status=403,
                type="permission_error",
                code="foreign_origin",
            )
        keys = self._desk.ring
        if keys is None:
            return ANYBODY
        caller = _known(keys, headers)
        if caller is None:
            if scope["path"] in OPEN:
                return STRANGER
            raise _unauthorised(any(given_keys(headers)))
        if scope["method"] in ("POST", "PUT"):
            caller.count_request(wall_clock())
        return caller


def _first(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in headers if name == wanted), "")


def given_keys(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Keys as OpenAI's and as Anthropic's clients send them."""
    found: list[bytes] = []
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            found.append(value[7:].strip())
        elif name == b"x-api-key":
            found.append(value.strip())
    return found[:2]


def _known(keys: Keyring, headers: Iterable[tuple[bytes, bytes]]) -> Caller | None:
    found = [keys.find(key) for key in given_keys(headers)]
    return next((caller for caller in found if caller is not None), None)


def _unauthorised(given: bool) -> RequestError:
    what = "the API key is not known here." if given else "this server asks for an API key."
    return RequestError(
        f"{what} Send one as 'authorization: Bearer KEY'.",
        status=401,
        type="authentication_error",
        code="invalid_api_key",
    )


def _refusal(scope: Scope, error: RequestError) -> Response:
    response = Response(
        error_body(error, scope["path"]), error.status, media_type="application/json"
    )
    response.raw_headers += error_headers(error)
    if error.status == 401:
        response.raw_headers.append((b"www-authenticate", b"Bearer"))
    length = _first(scope["headers"], b"content-length")
    chunked = bool(_first(scope["headers"], b"transfer-encoding"))
    if chunked or (length.isdigit() and int(length) > UNREAD_BODY):
        response.raw_headers.append((b"connection", b"close"))
    return response
