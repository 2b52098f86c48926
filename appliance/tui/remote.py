"""A run on another machine as a source: its snapshot over HTTP, nothing that changes anything."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import msgspec

from appliance import address
from appliance.errors import (
    ApplianceError,
    NotAuthorisedError,
    NotFoundError,
    NotRunningError,
    UsageError,
)
from appliance.status import TopSnapshot
from appliance.tui.source import HISTORY_S

_KEY_HINT = "Put a key of that server into APPLIANCE_API_KEY."


class Remote:
    """url: of the server's API, with or without /v1. key: for servers that want one.

    Every method raises ApplianceError; no answer within `timeout` seconds is NotRunningError.
    """

    def __init__(self, url: str, key: str = "", *, timeout: float = 2.0) -> None:
        self._asked = address.normal(url)
        address.connection(self._asked, timeout)  # a URL that is none is told of at once
        parts = urlsplit(self._asked)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._base = address.route_of(self._asked)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout

    def top(self, history: int = HISTORY_S, lines: int = 50) -> TopSnapshot:
        body = self._get(f"/top?history={history}&lines={lines}")
        try:
            top = msgspec.json.decode(body, type=TopSnapshot)
        except msgspec.DecodeError as e:
            raise NotRunningError(
                f"what {self.url} answers is no snapshot: {e}.",
                "Is it an appliance?",
                code="APL-NET-005",
            ) from e
        return msgspec.structs.replace(top, url=self.url)

    def plan(self) -> dict[str, Any]:
        """Where values come from; NotAuthorisedError unless the key is an admin's."""
        try:
            return msgspec.json.decode(self._get("/plan"), type=dict[str, Any])
        except msgspec.DecodeError as e:
            raise NotFoundError(
                f"what {self.url} answers is no plan: {e}.", code="APL-NET-005"
            ) from e

    def _get(self, route: str) -> bytes:
        connection = address.connection(self._asked, self._timeout)
        target = f"{self._base}/appliance/v1{route}"
        try:
            connection.request("GET", target, headers=self._headers)
            answer = connection.getresponse()
            status, body = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as e:
            raise NotRunningError(
                f"{self.url} does not answer: {e}.",
                "Is its address reachable from here?",
                code="APL-NET-005",
            ) from e
        finally:
            connection.close()
        if status != 200:
            raise self._refusal(status, body)
        return body

    def cancel(self, id: str) -> None:
        raise UsageError("requests are cancelled on the server's own machine.", "Use ssh.")

    def down(self, drain_s: float = 30.0) -> None:
        raise UsageError("a run is stopped on its own machine.", "Use ssh.")

    def _refusal(self, status: int, body: bytes) -> ApplianceError:
        try:
            text = str(json.loads(body)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            text = f"status {status}"
        if status in (401, 403):
            return NotAuthorisedError(f"{self.url} refuses: {text}", _KEY_HINT, code="APL-AUT-003")
        if status == 404:
            return NotFoundError(
                f"{self.url} has no snapshot to show.", "Is it an appliance?", code="APL-NET-005"
            )
        return NotRunningError(
            f"{self.url}: {text}", "appliance status there says more.", code="APL-NET-005"
        )
