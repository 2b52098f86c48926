"""Bad input is a real status that names field, value and limit; nothing reaches the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from served_frontend import Served

JSON = {"content-type": "application/json"}
HI = [{"role": "user", "content": "Hi"}]


def post(served: Served, path: str, body: Any, **headers: str) -> httpx.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(served.url + path, content=data, headers=JSON | headers)


COMPLETIONS: list[tuple[Any, int, str, str | None, str]] = [
    (b'{"prompt":', 400, "invalid_json", None, "truncated"),
    (b'\xef\xbb\xbf{"prompt":"a"}', 400, "invalid_json", None, "byte 0"),
    (b'{"prompt":"a"} x', 400, "invalid_json", None, "trailing"),
    (b'{"prompt":"\xff"}', 400, "invalid_utf8", None, "UTF-8"),
    (b'{"prompt":' + b"[" * 200_000, 400, "nesting_too_deep", None, "64 levels"),
    (b'{"prompt":"a","temperature":NaN}', 400, "invalid_json", None, "byte"),
    (b'{"prompt":"a","temperature":1e999}', 400, "invalid_value", "temperature", "out of range"),
    (b"[]", 400, "invalid_value", None, "object"),
    ({}, 400, "invalid_value", "prompt", "prompt"),
    ({"prompt": 7}, 400, "invalid_value", "prompt", "prompt"),
    ({"prompt": []}, 400, "invalid_value", "prompt", "empty"),
    ({"prompt": ["a", 1]}, 400, "invalid_value", "prompt", "prompt must be"),
    ({"prompt": [True]}, 400, "invalid_value", "prompt", "prompt must be"),
    ({"prompt": [1, 100000]}, 400, "invalid_value", "prompt", "0 to 399"),
    ({"prompt": [[-1]]}, 400, "invalid_value", "prompt", "-1"),
    ({"temperature": 2.5}, 400, "invalid_value", "temperature", "<= 2.0"),
    ({"temperature": "hot"}, 400, "invalid_value", "temperature", "float"),
    ({"top_p": 0}, 400, "invalid_value", "top_p", "> 0.0"),
    ({"max_tokens": 0}, 400, "invalid_value", "max_tokens", ">= 1"),
    ({"max_tokens": -1}, 400, "invalid_value", "max_tokens", ">= 1"),
    ({"max_tokens": 1 << 31}, 400, "invalid_value", "max_tokens", "<= 2147483647"),
    ({"max_tokens": 512}, 400, "context_length_exceeded", "max_tokens", "is 512"),
    ({"max_tokens": 4, "min_tokens": 5}, 400, "invalid_value", "min_tokens", "5"),
    ({"n": 17}, 400, "invalid_value", "n", "<= 16"),
    ({"n": True}, 400, "invalid_value", "n", "bool"),
    ({"prompt": ["a"] * 1025}, 400, "too_many_prompts", "prompt", "1024"),
    ({"best_of": 3}, 400, "unsupported_value", "best_of", "3"),
    ({"seed": 1 << 63}, 400, "invalid_value", "seed", "9223372036854775807"),
    ({"stop": ["x"] * 17}, 400, "invalid_value", "stop", "16"),
    ({"stop": ""}, 400, "invalid_value", "stop", "0 bytes"),
    ({"stop": "x" * 257}, 400, "invalid_value", "stop", "257 bytes"),
    ({"logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias", "'x'"),
    ({"logit_bias": {"99999": 1}}, 400, "invalid_value", "logit_bias", "99999"),
    ({"logit_bias": {"1": 101}}, 400, "invalid_value", "logit_bias", "100"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, 400, "invalid_value", "logit_bias", "1025"),
    ({"stop_token_ids": [-1]}, 400, "invalid_value", "stop_token_ids", ">= 0"),
    ({"stop_token_ids": [100000]}, 400, "invalid_value", "stop_token_ids", "100000"),
    ({"logprobs": 21}, 400, "invalid_value", "logprobs", "<= 20"),
    ({"prompt_logprobs": 1, "stream": True}, 400, "invalid_value", "prompt_logprobs", "stream"),
    ({"suffix": "x"}, 400, "unsupported_value", "suffix", "suffix"),
    (
        {"response_format": {"type": "yaml"}},
        400, "unsupported_value", "response_format", "json_object",
    ),
    (
        {"response_format": {"type": "json_schema"}},
        400, "invalid_value", "response_format", "needs json_schema.schema",
    ),
    ({"regex": "a", "ebnf": 'root ::= "a"'}, 400, "invalid_value", "ebnf", "regex and ebnf"),
    ({"regex": ""}, 400, "invalid_value", "regex", "empty"),
    ({"regex": "a" * 300_000}, 400, "grammar_too_complex", "regex", "262,144"),
    ({"guided_choice": []}, 400, "invalid_value", "guided_choice", ">= 1"),
    (
        {"structured_outputs": {"json": {}, "regex": "a"}},
        400, "invalid_value", "structured_outputs", "leave one out",
    ),
    ({"model": "gpt-9"}, 404, "model_not_found", "model", "org/tiny, small, default"),
    ({"prompt": "word " * 600}, 400, "context_length_exceeded", "prompt", "context length is 512"),
]  # fmt: skip


@pytest.mark.parametrize("body, status, code, param, text", COMPLETIONS)
def test_completions_refuse(
    served: Served, engine: FakeEngine, body: Any, status: int, code: str, param: str, text: str
) -> None:
    if isinstance(body, dict) and body:
        body = {"prompt": "Hello"} | body
    response = post(served, "/v1/completions", body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), error
    assert text in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-should-retry"] == "false"
    assert engine.requests == [] and served.frontend.live == 0


CHATS: list[tuple[dict[str, Any], str, str | None, str]] = [
    ({"messages": []}, "invalid_value", "messages", "length"),
    ({"messages": [{"content": "x"}]}, "invalid_value", "messages", "messages[0].role"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages", "'robot'"),
    ({"messages": [{"role": "user", "content": 3}]}, "invalid_value", "messages", "content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "unsupported_content", "messages", "'image_url'",
    ),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs", "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs", "<= 20"),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice", "no tools"),
    ({"tool_choice": "maybe"}, "invalid_value", "tool_choice", "'required'"),
    ({"tools": [{"type": "code"}]}, "invalid_value", "tools", "only 'function'"),
    ({"tools": [{"function": {"name": "a b"}}]}, "invalid_value", "tools", r"tools[0]"),
    (
        {"tools": [{"function": {"name": "f", "parameters": {"type": "string"}}}]},
        "invalid_value", "tools", "'object'",
    ),
    ({"reasoning_effort": "lots"}, "invalid_value", "reasoning_effort", "lots"),
    (
        {"chat_template_kwargs": {"messages": []}},
        "invalid_value", "chat_template_kwargs", "messages",
    ),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "invalid_value", "continue_final_message", "exclude",
    ),
    ({"max_completion_tokens": 0}, "invalid_value", "max_completion_tokens", ">= 1"),
]  # fmt: skip


@pytest.mark.parametrize("body, code, param, text", CHATS)
@pytest.mark.parametrize("stream", [False, True])
def test_chat_refuses(
    served: Served, engine: FakeEngine, body: dict[str, Any], code: str, param: str, text: str,
    stream: bool,
) -> None:  # fmt: skip
    response = post(served, "/v1/chat/completions", {"messages": HI, "stream": stream} | body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param), error
    assert text in error["message"]
    assert engine.requests == []


def test_what_fits_no_pool_is_refused_with_both_numbers(
    run_dir: Any, engine: FakeEngine, serve: Callable[..., Served]
) -> None:
    engine.total_tokens = 64
    engine.start()
    served = serve().connected()
    response = post(served, "/v1/completions", {"prompt": [7] * 100})
    assert response.json()["error"]["code"] == "request_exceeds_capacity"
    assert "100" in response.text and "64" in response.text


def test_unknown_fields_are_ignored(served: Served) -> None:
    body = {"prompt": "Hello", "nonsense": {"a": 1}, "service_tier": "x", "logprobs": None}
    assert post(served, "/v1/completions", body).status_code == 200


def test_a_full_queue_says_when_to_come_again(
    engine: FakeEngine, serve: Callable[..., Served]
) -> None:
    engine.start()
    served = serve(max_queue=3).connected()
    response = post(served, "/v1/completions", {"prompt": ["a"] * 4})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert int(response.headers["retry-after"]) >= 1
    assert int(response.headers["retry-after-ms"]) > 0
    assert response.headers["x-should-retry"] == "true"
    assert post(served, "/v1/completions", {"prompt": ["a"] * 3}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_only_json_is_taken(served: Served, kind: str) -> None:
    response = post(served, "/v1/completions", {"prompt": "a"}, **{"content-type": kind})
    assert response.status_code == 415 and "application/json" in response.text


def test_a_body_that_is_too_large(served: Served) -> None:
    response = post(served, "/v1/completions", b" " * (17 << 20))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/v1/completions", 405), ("POST", "/v1/models", 405), ("GET", "/v2", 404),
])  # fmt: skip
def test_wrong_routes_have_the_same_shape(
    served: Served, method: str, path: str, status: int
) -> None:
    response = httpx.request(method, served.url + path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_request_ids_are_taken_cleaned_and_returned(served: Served) -> None:
    given = post(served, "/v1/completions", {"prompt": "a"}, **{"x-request-id": "bench-7"})
    assert given.headers["x-request-id"] == "bench-7"
    assert given.json()["id"] == "cmpl-bench-7"
    dirty = post(served, "/v1/completions", {}, **{"x-request-id": "a b]0;\t" + "y" * 500})
    assert dirty.headers["x-request-id"] == "ab0" + "y" * 125
    minted = [httpx.get(served.url + "/version").headers["x-request-id"] for _ in range(2)]
    assert minted[0] != minted[1] and all(len(m) == 24 for m in minted)


def test_a_fault_of_ours_shows_no_details(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("secret path /home/x")

    monkeypatch.setattr(served.frontend.text._tokenizing, "requests", broken)
    response = post(served, "/v1/completions", {"prompt": "a"})
    assert response.status_code == 500 and "secret" not in response.text
    assert response.headers["x-should-retry"] == "false"
    assert "secret path" in caplog.text
