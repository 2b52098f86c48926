"""logs --request and --curl: what an ended request took, and asking for it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any

import pytest

from appliance import paths
from appliance.log import RotatingFile
from appliance.runtime.api.request_log import Entry, line_of
from appliance.runtime.wire.text import TextDelta
from appliance.status import RequestRow

Cli = Callable[..., Any]
BODY = {"messages": [{"role": "user", "content": "it's “€” $HOME `x`\n"}], "stream": True}


def entry(id: str, *, content: bool = False, key: str = "") -> Entry:
    made = Entry(id, "POST", "/v1/chat/completions", "agent", content)
    made.at, made.ended, made.status = 1.8e9, made.began + 0.5, 200
    made.stream, made.caller = True, key
    row = RequestRow(id, "done", 21, 16, 8, 99, 0.4, 0.0002, 0.013, 480.0, "agent", "stop")
    made.rows = [row]
    made.usage = lambda: {"prompt_tokens": 21, "prompt_tokens_details": {"cached_tokens": 16}}
    if content:
        made.body = json.dumps(BODY).encode()
        made.heard(0, TextDelta(1, "Hello"))
    return made


def keep(*entries: Entry, frontend: int = 0, name: str = "default") -> None:
    log = RotatingFile(paths.request_log(name, frontend), max_bytes=400, kept=9)
    for one in entries:
        log.write(line_of(one, "org/tiny"))
    log.close()


def test_a_request_is_found_in_any_file_of_any_frontend(cli: Cli) -> None:
    keep(entry("req-1"), entry("req-10"), entry("req-2"))
    keep(entry("other"), entry("req-3", key="team-a"), frontend=1)
    path = paths.supervisor_log("default")
    path.write_text("2026-11-20T12:00:01.000Z INFO    frontend-0 req-1: the client left\n")
    said = cli("logs", "--request", "req-1")
    assert said.code == 0
    first, *rest = said.out.splitlines()
    assert first.endswith("req-1: the client left")
    assert rest == [
        "request  req-1   POST /v1/chat/completions (openai)   200 stop",
        "  at     2027-01-15T08:00:00.000Z   model org/tiny   by agent",
        "  tokens 21 prompt (16 cached) + 8 output",
        "  time   queued 0.2 ms, first token 13.0 ms, a token 2.1 ms, all 500.0 ms",
    ]
    said = cli("logs", "--request", "chatcmpl-req-3", "--json")
    [row] = [json.loads(line)["request"] for line in said.out.splitlines()]
    assert (row["id"], row["key"], row["output_tokens"]) == ("req-3", "team-a", 8)
    said = cli("logs", "--request", "req-9")
    assert said.out == "" and "No request 'req-9'" in said.err


def test_the_curl_asks_for_the_same(cli: Cli) -> None:
    keep(entry("mine", content=True, key="team-a"))
    said = cli("logs", "--request", "mine", "--curl")
    assert said.code == 0
    words = shlex.split(said.out.replace("\\\n", " "))
    assert words[:4] == ["curl", "-sS", "-N", "http://127.0.0.1:8000/v1/chat/completions"]
    assert words[4:8] == [
        "-H", "content-type: application/json", "-H", "authorization: Bearer $APPLIANCE_API_KEY",
    ]  # fmt: skip
    assert words[8] == "--data-binary" and json.loads(words[9]) == BODY
    data = json.loads(cli("logs", "--request", "mine", "--curl", "--json").out)
    assert data["schema"] == "appliance.curl/1" and data["curl"] + "\n" == said.out


@pytest.mark.parametrize(
    ("words", "code", "fix"),
    [
        (("--request", "plain", "--curl"), "APL-USE-040", "--request-log content"),
        (("--request", "long", "--curl"), "APL-USE-040", "2,000,000 bytes"),
        (("--request", "absent", "--curl"), "APL-NOT-025", "--request-log content"),
        (("--curl",), "APL-USE-001", "--request ID --curl"),
    ],
)
def test_what_cannot_be_asked_again(cli: Cli, words: tuple[str, ...], code: str, fix: str) -> None:
    long = entry("long", content=True)
    long.body = b" " * 2_000_000
    keep(entry("plain"), long)
    said = cli("logs", *words)
    assert said.code in (2, 4) and code in said.err and fix in said.err


def test_who_keeps_content_is_told_where(cli: Cli) -> None:
    said = cli("up", "--dry-run", "--request-log", "content")
    assert said.code == 0 and f"kept in {paths.state_dir() / 'logs'}" in said.err
    assert "prompts and answers" not in cli("up", "--dry-run").err
