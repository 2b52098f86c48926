"""What went wrong -> HTTP status, headers and OpenAI's error body: one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from appliance.errors import (
    ApplianceError,
    BusyError,
    DoesNotFitError,
    EngineError,
    NotAuthorisedError,
    NotFoundError,
    PromptTooLongError,
    RequestError,
)

STATUS: tuple[tuple[type[ApplianceError], int, str, str], ...] = (
    (NotFoundError, 404, "invalid_request_error", "not_found"),
    (NotAuthorisedError, 401, "authentication_error", "invalid_api_key"),
    (DoesNotFitError, 400, "invalid_request_error", "request_exceeds_capacity"),
    (BusyError, 503, "overloaded_error", "overloaded"),
    (EngineError, 500, "server_error", "engine_error"),
    (ApplianceError, 500, "server_error", "internal_error"),
)

_RETRIED = frozenset({408, 429, 503})
"""Statuses a client may try again; openai-python would also try any 5xx again unless told."""


def as_request_error(error: Exception) -> RequestError:
    """Any exception as one a caller may see. The text of a fault of ours is not shown."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ApplianceError):
        for kind, status, type_, code in STATUS:
            if isinstance(error, kind):
                text = f"{error.message} {error.hint}".strip()
                return RequestError(text, status=status, type=type_, code=code)
    return RequestError(
        "The server met an error of its own; its log has the details under this request's id.",
        status=500,
        type="server_error",
        code="internal_error",
    )


def error_object(error: RequestError) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_error(error: RequestError) -> dict[str, Any]:
    usual = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(error.status, usual)
    message = error.message
    if isinstance(error, PromptTooLongError):
        # Claude Code reads both numbers out of these words, and shortens its conversation by them.
        told = f": {error.tokens} tokens > {error.context - 1} maximum" if error.tokens else ""
        message = f"prompt is too long{told}. {message}"
    return {"type": "error", "error": {"type": kind, "message": message}}


def tgi_error(error: RequestError) -> dict[str, Any]:
    kind = "validation" if error.status < 500 else "generation"
    return {
        "error": error.message,
        "error_type": "overloaded" if error.status in (429, 503) else kind,
    }


_DIALECTS: tuple[tuple[str, Callable[[RequestError], dict[str, Any]]], ...] = (
    ("/v1/messages", anthropic_error),
    ("/generate_stream", tgi_error),
)
"""Routes whose clients read another shape of error than OpenAI's."""


def error_body(error: RequestError, path: str = "") -> bytes:
    """path: of the request, which says in whose dialect its errors are told."""
    for start, shape in _DIALECTS:
        if path.startswith(start):
            return msgspec.json.encode(shape(error))
    return msgspec.json.encode(error_object(error))


def error_headers(error: RequestError) -> list[tuple[bytes, bytes]]:
    """x-should-retry always; retry-after where the error says when."""
    retry = error.status in _RETRIED and error.retry_after_s is not None
    headers = [(b"x-should-retry", b"true" if retry else b"false")]
    if retry and error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
        headers.append((b"retry-after-ms", str(round(error.retry_after_s * 1000)).encode()))
    return headers
