"""appliance chat and run: talk to the served model, over HTTP like any client."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import click

from appliance import paths
from appliance.cli.output import Output
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
    """One streamed answer. Iterate for its text; the figures hold once it is over."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        self.text = ""
        self.finish = ""
        self.usage: dict[str, Any] = {}
        self.ttft_s: float | None = None
        self.seconds = 0.0
        self._body = body | {"stream": True, "stream_options": {"include_usage": True}}
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"'{url}' is no URL of a server.", "Use --url http://HOST:PORT")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = kind(parts.hostname, parts.port, timeout=600)
        base = parts.path.rstrip("/").removesuffix("/v1")
        self._path = f"{base}/v1/chat/completions"
        self._url = url

    def pieces(self) -> Iterator[str]:
        began = time.monotonic()
        for event in self._events():
            if event.get("error"):
                raise EngineError(str(event["error"].get("message", "the stream broke off")))
            self.usage = event.get("usage") or self.usage
            for choice in event.get("choices", []):
                self.finish = choice.get("finish_reason") or self.finish
                piece = choice.get("delta", {}).get("content")
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
        return (
            f"{self.usage.get('prompt_tokens', 0)} prompt tokens, {made} tokens in "
            f"{self.seconds:.2f} s: first after {first * 1000:.0f} ms, then {rate:.1f} tok/s"
        )

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
            for raw in response:
                line = raw.strip()
                if line.startswith(b"data:") and line != b"data: [DONE]":
                    yield json.loads(line[5:])
        except (OSError, http.client.HTTPException) as e:
            raise NetworkError(
                f"{self._url} does not answer: {e}.", "`appliance status` says what runs."
            ) from e
        finally:
            self._connection.close()


def _refusal(status: int, body: bytes) -> Exception:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:200].decode(errors="replace")
    if status == 503:
        return NotRunningError(message, "`appliance status` shows how far it is.")
    if status == 401:
        return NotAuthorisedError(
            f"the server refused: {message}",
            "Put a key into APPLIANCE_API_KEY. `appliance key add NAME` makes one.",
        )
    if status < 500:
        return UsageError(f"the server refused with status {status}: {message}")
    return EngineError(f"the server failed with status {status}: {message}", "appliance logs")


def _options(command: Any) -> Any:
    for option in (
        click.option("--name", default="default", help="The run to talk to."),
        click.option("--url", help="Any OpenAI-compatible server instead of a run of ours."),
        click.option("--model", help="Model name to ask for."),
        click.option("--system", help="System prompt."),
        click.option("--max-tokens", type=click.IntRange(1), help="Longest answer."),
        click.option("--temperature", type=click.FloatRange(0, 2)),
        click.option("--seed", type=int),
        click.option("--stats", is_flag=True, help="Times and tokens on stderr."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("prompt", nargs=-1)
@_options
@click.pass_obj
def chat(out: Output, /, prompt: tuple[str, ...], **given: Any) -> None:
    """Talk to the served model; with PROMPT, one answer."""
    if prompt or not sys.stdin.isatty():
        _one(out, " ".join(prompt), given)
        return
    _repl(out, given)


@click.command()
@click.argument("prompt", nargs=-1)
@_options
@click.pass_obj
def run(out: Output, /, prompt: tuple[str, ...], **given: Any) -> None:
    """One answer to PROMPT; `-` or nothing reads it from stdin."""
    _one(out, " ".join(prompt), given)


def _one(out: Output, prompt: str, given: dict[str, Any]) -> None:
    if not sys.stdin.isatty() and prompt in ("", "-"):
        prompt = sys.stdin.read().strip()
    if prompt in ("", "-"):
        raise UsageError("there is no prompt.", 'For example: appliance run "What is 2 + 3?"')
    answer = _ask(given, [*_system(given), {"role": "user", "content": prompt}])
    if out.json:
        for _ in answer.pieces():
            pass
        data = {"text": answer.text, "finish_reason": answer.finish, "usage": answer.usage}
        times = {"ttft_s": answer.ttft_s, "seconds": answer.seconds}
        out.result(answer.text, {"schema": "appliance.answer/1", **data, **times})
    else:
        _print(answer)
    if given["stats"]:
        out.note(answer.stats())


def _repl(out: Output, given: dict[str, Any]) -> None:
    import readline  # noqa: F401  gives input() its line editing

    messages = _system(given)
    out.note("Type to talk; /new forgets, Ctrl-D leaves.")
    while True:
        try:
            line = input(">>> ").strip()
        except EOFError:
            sys.stdout.write("\n")
            return
        if line in ("/bye", "/exit", "/quit"):
            return
        if line == "/new":
            messages = _system(given)
            continue
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        answer = _ask(given, messages)
        try:
            _print(answer)
        except KeyboardInterrupt:
            out.note("\n(stopped)")
        messages.append({"role": "assistant", "content": answer.text})
        if given["stats"] and answer.seconds:
            out.note(answer.stats())


def _system(given: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "system", "content": given["system"]}] if given["system"] else []


def _ask(given: dict[str, Any], messages: list[dict[str, str]]) -> Answer:
    url, model = given["url"], given["model"]
    if not url:
        status = Client(paths.control_socket(run_folder(given["name"]))).status()
        url = status.url
    body = {"model": model or "default", "messages": messages}
    body |= {k: given[k] for k in ("max_tokens", "temperature", "seed") if given[k] is not None}
    return Answer(url, body)


def _print(answer: Answer) -> None:
    for piece in answer.pieces():
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
