"""The request log: what a line says, what it never says, and that it costs nobody time."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from served_frontend import Served

from appliance import paths
from appliance.keys import add_key
from appliance.log import rotated
from appliance.metrics import Registry
from appliance.runtime.api import request_log
from appliance.runtime.api.request_log import Entry, RequestLog, line_of, without_secrets
from appliance.runtime.wire.text import CallDelta, TextDelta

Serve = Callable[..., Served]


def lines(served: Served) -> list[dict[str, Any]]:
    """What is written when the frontend has ended."""
    served.close()
    path = paths.request_log("test", 0)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_line_for_each_request_and_no_text_of_it(served: Served, engine: FakeEngine) -> None:
    engine.cached = 2
    body = {"prompt": "secret words", "max_tokens": 4, "n": 2}
    headers = {"x-request-id": "mine", "user-agent": "bench/1.0 (x)"}
    url = f"{served.url}/v1/completions"
    assert httpx.post(url, json=body, headers=headers).status_code == 200
    stream = {"model": "default", "messages": [{"role": "user", "content": "secret"}]}
    stream |= {"stream": True, "max_tokens": 3}
    assert httpx.post(f"{served.url}/v1/chat/completions", json=stream).status_code == 200
    assert httpx.post(f"{served.url}/v1/messages", json={}).status_code == 400
    assert httpx.post(f"{served.url}/generate", json={"text": "secret"}).status_code == 200
    assert httpx.get(f"{served.url}/health").status_code in (200, 503)
    first, second, third, fourth = lines(served)
    assert "secret" not in paths.request_log("test", 0).read_text()
    assert paths.request_log("test", 0).stat().st_mode & 0o777 == 0o600
    times = {name: first.pop(name) for name in ("at", "queue_s", "ttft_s", "itl_s", "total_s")}
    assert times["at"].endswith("Z") and len(times["at"]) == 24
    assert 0 <= times["queue_s"] <= times["ttft_s"] <= times["total_s"]
    prompt = first.pop("prompt_tokens")
    assert first == {
        "schema": "appliance.request/1", "id": "mine", "method": "POST",
        "route": "/v1/completions", "dialect": "openai", "model": "org/tiny", "key": None,
        "agent": "bench/1.0", "stream": False, "status": 200, "error": None,
        "finish": ["length", "length"], "cached_tokens": 2, "output_tokens": 8,
    }  # fmt: skip
    assert prompt > 0
    assert (second["stream"], second["output_tokens"]) == (True, 3)
    assert (third["dialect"], third["status"]) == ("anthropic", 400)
    assert third["error"] and third["prompt_tokens"] is third["ttft_s"] is None
    assert (fourth["dialect"], fourth["status"]) == ("sglang", 200)


def test_a_client_that_leaves_and_an_error_in_a_stream(served: Served, engine: FakeEngine) -> None:
    engine.budget = 3
    body = {"prompt": "Hello", "max_tokens": 9, "stream": True}
    url = f"{served.url}/v1/completions"
    with httpx.stream("POST", url, json=body) as response:
        next(response.iter_lines())
    engine.wait(lambda: bool(engine.aborts))
    engine.error, engine.budget = "broken", None
    assert httpx.post(url, json=body).status_code == 500
    metrics = httpx.get(f"{served.url}/metrics").text
    left, failed = lines(served)
    assert (left["status"], left["finish"], left["error"]) == (499, ["abort"], None)
    assert (failed["status"], failed["error"]) == (500, "engine_error")
    assert 'appliance_request_errors_total{model_name="org/tiny",code="engine_error"} 1' in metrics


def test_content_only_when_asked_for_and_never_a_key(
    engine: FakeEngine, serve: Serve, run_dir: Path
) -> None:
    engine.start()
    keys = run_dir / "keys.json"
    key = add_key(keys, "team-a")
    served = serve(request_log="content", keys_file=str(keys)).connected()
    said = f"my key is {key}\u2028and so on"
    body = {"messages": [{"role": "user", "content": said}], "max_tokens": 2, "api_key": "hidden"}
    url = f"{served.url}/v1/chat/completions"
    answered = httpx.post(url, json=body, headers={"authorization": f"Bearer {key}"})
    assert answered.status_code == 200
    foreign = {"authorization": "Bearer sk-somebody-elses"}
    assert httpx.post(url, json=body, headers=foreign).status_code == 401
    first, second = lines(served)
    assert first["key"] == "team-a"
    content = first["request"]["messages"][0]["content"]
    assert content == "my key is [redacted]\u2028and so on"
    assert first["request"]["api_key"] == "[redacted]"
    assert first["answer"] == [{"text": answered.json()["choices"][0]["message"]["content"]}]
    assert (second["status"], second["error"], second["request"]) == (401, "invalid_api_key", None)
    text = paths.request_log("test", 0).read_text()
    assert key not in text and "elses" not in text and "hidden" not in text
    assert len(text.splitlines()) == 2


def test_off_writes_nothing(engine: FakeEngine, serve: Serve) -> None:
    engine.start()
    served = serve(request_log="off").connected()
    assert httpx.post(f"{served.url}/v1/completions", json={"prompt": "x"}).status_code == 200
    assert lines(served) == []


def test_secrets_of_a_body() -> None:
    tools = [{"type": "mcp", "headers": {"X-Any": "s"}, "authorization": "s"}]
    schema = {"properties": {"password": {"type": "string"}}, "max_tokens": 3}
    assert without_secrets({"tools": tools, "schema": schema}) == {
        "tools": [
            {"type": "mcp", "headers": {"X-Any": "[redacted]"}, "authorization": "[redacted]"}
        ],
        "schema": schema,
    }


def entry(number: int) -> Entry:
    made = Entry(f"req-{number:04d}", "POST", "/v1/completions", "agent\r\n\x1b[2J")
    made.status = 200
    return made


def dropped() -> Any:
    return Registry().counter("dropped", "")


def test_rotation_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "requests.jsonl"
    log = RequestLog(path, content=False, model="m", dropped=dropped(), max_bytes=4000, kept=2)
    for number in range(100):
        log.end(entry(number), 200, None)
    log.close()
    files = rotated(path)
    assert len(files) == 3 and all(f.stat().st_size <= 4000 for f in files)
    kept = [json.loads(line) for f in reversed(files) for line in f.read_text().splitlines()]
    assert [k["id"] for k in kept] == [f"req-{n:04d}" for n in range(100 - len(kept), 100)]
    assert kept[0]["agent"] == "agent\r\n\x1b[2J"


def test_a_disk_that_hangs_costs_lines_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, real = threading.Event(), os.write

    def slow(fd: int, data: bytes) -> int:
        assert go.wait(60)
        return real(fd, data)

    monkeypatch.setattr(os, "write", slow)
    monkeypatch.setattr(request_log, "MAX_WAITING", 10)
    lost = dropped()
    log = RequestLog(tmp_path / "r.jsonl", content=False, model="a|b", dropped=lost)
    for number in range(100):
        log.end(entry(number), 200, None)  # returns, though nothing can be written
    missed = lost.series["a_b"]
    assert missed in (89.0, 90.0)  # one is in the writer's hands, or was not yet taken
    go.set()
    log.close()
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 100 - missed


def test_a_full_disk_is_told_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    lost = dropped()
    log = RequestLog(Path("/dev/full"), content=False, model="m", dropped=lost)
    for number in range(5):
        log.end(entry(number), 200, None)
    log.close()
    assert lost.series["m"] == 5.0
    assert sum("cannot be written" in r.message for r in caplog.records) == 1


def test_an_answer_of_thoughts_text_and_calls() -> None:
    made = Entry("a", "POST", "/v1/chat/completions", content=True)
    made.body = b"{}"
    for delta in (
        TextDelta(1, "", reasoning="I th"),
        TextDelta(1, "", reasoning="ink"),
        TextDelta(1, "Well", calls=(CallDelta(0, id="c", name="look"),)),
        TextDelta(1, "", calls=(CallDelta(0, '{"a":'), CallDelta(1, "{}", "d", "go"))),
        TextDelta(1, "", calls=(CallDelta(0, "1}"),)),
    ):
        made.heard(1, delta)
    made.heard(0, TextDelta(2, "Other"))
    assert json.loads(line_of(made, "m"))["answer"] == [
        {"text": "Other"},
        {
            "text": "Well",
            "reasoning": "I think",
            "calls": [{"name": "look", "arguments": '{"a":1}'}, {"name": "go", "arguments": "{}"}],
        },
    ]


def test_what_is_too_long_for_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "MAX_CONTENT", 20)
    long = Entry("a", "POST", "/v1/completions", content=True)
    long.body = b'{"prompt": "' + b"x" * 50 + b'"}'
    told = json.loads(line_of(long, "m"))
    assert (told["request"], told["request_bytes"], told["answer"]) == (None, 64, [])
    deep = Entry("a", "POST", "/", content=True)
    deep.body = b"[" * 15
    assert json.loads(line_of(deep, "m"))["request"] is None
