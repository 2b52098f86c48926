"""One answer of an OpenAI-compatible server, asked for over HTTP like by any client."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from appliance import address, paths
from appliance.cli.prepare import run_folder
from appliance.client import Client
from appliance.errors import (
    EngineError,
    NetworkError,
    NotAuthorisedError,
    NotRunningError,
    UsageError,
)


class Answer:
    """One answer. Iterate `pieces` for its text; the figures hold once it is over."""

    def __init__(self, url: str, route: str, body: dict[str, Any], *, stream: bool = True) -> None:
        """route: chat/completions or completions. UsageError when `url` is none."""
        self.text = ""
        self.finish = ""
        self.usage: dict[str, Any] = {}
        self.logprobs: dict[str, Any] | None = None
        self.ttft_s: float | None = None
        self.seconds = 0.0
        self._stream = stream
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        self._body = body | more
        self._connection = address.connection(url, 600)
        self._path = f"{address.route_of(url)}/v1/{route}"
        self._url = url

    def pieces(self) -> Iterator[str]:
        began = time.monotonic()
        for event in self._events():
            if event.get("error"):
                raise EngineError(str(event["error"].get("message", "the stream broke off")))
            self.usage = event.get("usage") or self.usage
            for choice in event.get("choices", []):
                self.finish = choice.get("finish_reason") or self.finish
                self._add_logprobs(choice.get("logprobs"))
                said = choice.get("delta") or choice.get("message") or {}
                piece = choice.get("text") or said.get("content")
                if piece:
                    if self.ttft_s is None:
                        self.ttft_s = time.monotonic() - began
                    self.text += piece
                    yield piece
        self.seconds = time.monotonic() - began

    def stats(self) -> str:
        """`12 prompt tokens, 48 tokens in 0.52 s: first after 31 ms, then 98.2 tok/s`."""
        made = int(self.usage.get("completion_tokens", 0))
        first = self.ttft_s or self.seconds
        rate = (made - 1) / (self.seconds - first) if made > 1 and self.seconds > first else 0.0
        text = f"{self.usage.get('prompt_tokens', 0)} prompt tokens, {made} tokens"
        text += f" in {self.seconds:.2f} s"
        if not self._stream:
            return text
        return f"{text}: first after {first * 1000:.0f} ms, then {rate:.1f} tok/s"

    def data(self) -> dict[str, Any]:
        """Schema appliance.answer/1. ttft_s: null where the answer came whole or was empty."""
        return {
            "schema": "appliance.answer/1",
            "text": self.text,
            "finish_reason": self.finish or None,
            "usage": self.usage,
            "logprobs": self.logprobs,
            "ttft_s": self.ttft_s if self._stream else None,
            "duration_s": self.seconds,
        }

    def _add_logprobs(self, more: dict[str, Any] | None) -> None:
        if not more:
            return
        if self.logprobs is None:
            self.logprobs = dict(more)
            return
        for name, value in more.items():
            if isinstance(value, list) and isinstance(self.logprobs.get(name), list):
                self.logprobs[name] = self.logprobs[name] + value

    def _events(self) -> Iterator[dict[str, Any]]:
        headers = {"content-type": "application/json", "user-agent": "appliance-chat"}
        key = os.environ.get("APPLIANCE_API_KEY")
        if key:
            headers["authorization"] = f"Bearer {key}"
        try:
            self._connection.request("POST", self._path, json.dumps(self._body), headers)
            response = self._connection.getresponse()
            if response.status != 200:
                raise _refusal(response.status, response.read())
            if not self._stream:
                yield json.loads(response.read())
                return
            for raw in response:
                line = raw.strip()
                if line.startswith(b"data:") and line != b"data: [DONE]":
                    yield json.loads(line[5:])
        except (OSError, http.client.HTTPException) as e:
            raise NetworkError(
                f"{self._url} does not answer: {e}.",
                "Is the address right? `appliance ps` says what runs on this machine.",
                code="APL-NET-005",
            ) from e
        finally:
            self._connection.close()


def _refusal(status: int, body: bytes) -> Exception:
    code = None
    try:
        error = json.loads(body)["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message = body[:200].decode(errors="replace")
    if status == 503:
        return NotRunningError(
            message, "`appliance status` shows how far it is.", code="APL-RUN-004"
        )
    if status == 401:
        return NotAuthorisedError(
            f"the server refused: {message}",
            "Put a key into APPLIANCE_API_KEY. `appliance key add NAME` makes one.",
            code="APL-AUT-003",
        )
    if status < 500:
        hint = "A longer --context of `appliance up`, where model and memory have it, or less text."
        return UsageError(
            f"the server refused with status {status}: {message}",
            hint if code == "context_length_exceeded" else "",
            code="APL-USE-044",
        )
    return EngineError(f"the server failed with status {status}: {message}", "appliance logs")


def url_of(given: str | None, name: str) -> str:
    """The URL that was given, or that of the run; NotRunningError where nothing runs."""
    if given:
        return address.normal(given) if given.startswith("unix:") else given
    return Client(paths.control_socket(run_folder(name))).status().url
