"""The stream contract: each rule is one that some client breaks without."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from served_frontend import Served
from sse_reader import chat_text, completion_text, events, expected

from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.text import Chat

HI = [{"role": "user", "content": "Hi"}]


def chat(served: Served, **fields: Any) -> httpx.Response:
    body = {"messages": HI, "max_tokens": 40, "stream": True, **fields}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=30)


def test_headers_of_an_event_stream(served: Served) -> None:
    response = chat(served)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in response.headers


def test_the_role_comes_with_the_first_text_and_only_then(
    served: Served, text_room: TextWorker
) -> None:
    chunks = events(chat(served).text)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[0]["choices"][0]["delta"]["content"]
    assert all("role" not in c["choices"][0]["delta"] for c in chunks[1:])
    assert chat_text(chunks) == expected(text_room, Chat(HI), 40)
    reasons = [c["choices"][0]["finish_reason"] for c in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1


def test_usage_is_sent_only_when_asked_for_and_without_choices(served: Served) -> None:
    assert all("usage" not in c for c in events(chat(served).text))
    chunks = events(chat(served, stream_options={"include_usage": True}).text)
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    assert usage["completion_tokens"] == 40
    assert usage["total_tokens"] == 40 + usage["prompt_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert all(c["usage"] is None for c in chunks[:-1])


def test_usage_on_every_chunk(served: Served) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(chat(served, stream_options=options).text)
    counts = [c["usage"]["completion_tokens"] for c in chunks]
    assert counts == sorted(counts) and counts[-1] == 40


def test_cached_tokens_are_told(served: Served, engine: FakeEngine) -> None:
    engine.cached = 3
    body = {"messages": HI, "max_tokens": 2}
    usage = httpx.post(f"{served.url}/v1/chat/completions", json=body).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 3


def test_characters_are_never_split(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    text = "日本👋🏽é" * 5
    engine.script = text_room._vocabulary.encode(text, add_special_tokens=False)
    chunks = events(chat(served, max_tokens=200).text)
    assert chat_text(chunks) == text and "\ufffd" not in chat_text(chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_an_answer_without_text_still_has_a_role_and_a_reason(
    served: Served, engine: FakeEngine
) -> None:
    engine.script = []
    chunks = events(chat(served).text)
    (choice,) = chunks[0]["choices"]
    assert choice["delta"] == {"role": "assistant", "content": ""}
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", 1)


def test_several_choices_in_one_stream(served: Served, text_room: TextWorker) -> None:
    chunks = events(chat(served, n=3, stream_options={"include_usage": True}).text)
    for index in range(3):
        mine = [c for c in chunks[:-1] if c["choices"][0]["index"] == index]
        assert mine[0]["choices"][0]["delta"]["role"] == "assistant"
        assert chat_text(mine, index) == expected(text_room, Chat(HI), 40)
    assert chunks[-1]["usage"]["completion_tokens"] == 120


@pytest.mark.parametrize("stop", ["STOP", ["zz", "STOP"]])
def test_a_stop_string_ends_the_stream_and_the_engine_is_told(
    served: Served, engine: FakeEngine, text_room: TextWorker, stop: Any
) -> None:
    engine.script = text_room._vocabulary.encode("one STOP two" + " three" * 50, False)
    chunks = events(chat(served, stop=stop, max_tokens=200).text)
    assert chat_text(chunks) == "one "
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"][0]["stop_reason"] == "STOP"
    engine.wait(lambda: engine.aborts == [engine.requests[0].rid])


def test_a_stop_string_can_be_kept(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    engine.script = text_room._vocabulary.encode("one STOP two", False)
    chunks = events(chat(served, stop="STOP", include_stop_str_in_output=True).text)
    assert chat_text(chunks) == "one STOP"


def test_an_error_before_the_first_token_is_a_status(served: Served, engine: FakeEngine) -> None:
    engine.error = "logits were not finite."
    response = chat(served)
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "logits were not finite.",
        "type": "server_error",
        "param": None,
        "code": "engine_error",
    }
    assert response.headers["x-should-retry"] == "false"


def test_an_error_after_the_first_token_is_an_event(served: Served, engine: FakeEngine) -> None:
    engine.budget = 5
    body = {"messages": HI, "max_tokens": 40, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        got = [next(lines)]
        engine.error = "it broke."
        engine.budget = None
        got += list(lines)
    chunks = events("\n".join(got) + "\n")
    assert chunks[-1]["error"]["message"] == "it broke."


def test_completions_stream(served: Served, text_room: TextWorker) -> None:
    body = {"prompt": "Hello", "max_tokens": 40, "stream": True, "echo": True}
    chunks = events(httpx.post(f"{served.url}/v1/completions", json=body).text)
    assert completion_text(chunks) == "Hello" + expected(text_room, "Hello", 40)
    assert {c["object"] for c in chunks} == {"text_completion"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_logprobs_of_a_stream_lose_nothing(served: Served) -> None:
    chunks = events(chat(served, logprobs=True, top_logprobs=2).text)
    entries = [e for c in chunks for e in c["choices"][0]["logprobs"]["content"]]
    assert len(entries) == 40
    assert all(len(e["top_logprobs"]) == 2 and e["logprob"] == -0.25 for e in entries)


def test_token_ids_when_asked_for(served: Served) -> None:
    chunks = events(chat(served, return_token_ids=True).text)
    assert sum(len(c["choices"][0]["token_ids"]) for c in chunks) == 40
    assert chunks[0]["prompt_token_ids"]


def test_no_comment_unless_configured(
    engine: FakeEngine, serve: Callable[..., Served], text_room: TextWorker
) -> None:
    engine.budget = 1
    engine.start()
    served = serve(keep_alive_comment_s=0.05).connected()
    body = {"messages": HI, "max_tokens": 4, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body) as response:
        lines = [line for line in _until_comment(response.iter_lines(), engine) if line]
    assert ": keep-alive" in lines
    rest = [line for line in lines if not line.startswith(":")]
    assert chat_text(events("\n\n".join(rest) + "\n\n")) == expected(text_room, Chat(HI), 4)


def _until_comment(lines: Any, engine: FakeEngine) -> Any:
    for line in lines:
        if line.startswith(":"):
            engine.budget = None
        yield line


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_aborted(served: Served, engine: FakeEngine, stream: bool) -> None:
    engine.budget = 3
    body = {"messages": HI, "max_tokens": 400, "stream": stream, "n": 2}
    request = httpx.Request("POST", f"{served.url}/v1/chat/completions", json=body)
    raw = socket.create_connection(("127.0.0.1", served.port))
    head = "".join(f"{k}: {v}\r\n" for k, v in request.headers.items())
    raw.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + request.content)
    engine.wait(lambda: len(engine.requests) == 2 and engine.budget == 0)
    if stream:
        raw.recv(100)
    raw.close()
    engine.wait(lambda: len(engine.aborts) == 2)
    served.until(lambda: served.frontend.live == 0)
    assert sorted(engine.aborts) == sorted(r.rid for r in engine.requests)
    series = served.frontend.series
    served.until(lambda: series.requests.series["org/tiny|cancelled"] == 1)
    assert series.finished.series["org/tiny|abort"] == 2


def test_a_slow_reader_gets_everything_in_fewer_events(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    engine.context = 512
    body = {"messages": HI, "max_tokens": 480, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body) as response:
        served.until(lambda: served.frontend.live == 0)
        chunks = events(response.read().decode())
    assert chat_text(chunks) == expected(text_room, Chat(HI), 480)
    assert len(chunks) < 480
