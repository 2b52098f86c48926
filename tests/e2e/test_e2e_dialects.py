"""Clients of other dialects against the embedded model: Anthropic's, responses, TGI, agents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from pydantic import BaseModel
from stand import Stand

SUM = "What is 37 + 45?"
WEATHER = "Weather in Berlin?"
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
ABOUT = "Get the weather of a city"
SUNNY = '{"temperature": 20, "condition": "sunny"}'


@pytest.fixture(scope="module")
def claude(served: Stand) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.url, api_key="-", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def client(served: Stand) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as one:
        yield one


def test_anthropic_whole_and_streamed(claude: anthropic.Anthropic) -> None:
    asked: Any = {
        "model": "claude-any",
        "max_tokens": 60,
        "messages": [{"role": "user", "content": SUM}],
        "extra_body": {"temperature": 0},
    }
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
    [block] = whole.content
    assert block.type == "text" and block.text == text and "82" in text
    assert whole.stop_reason == "end_turn"
    counted = claude.messages.count_tokens(model="claude-any", messages=asked["messages"])
    cached = whole.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == whole.usage.input_tokens + cached


def test_anthropic_calls_a_tool_and_reads_its_result(claude: anthropic.Anthropic) -> None:
    tool: Any = {"name": "get_weather", "description": ABOUT, "input_schema": CITY}
    asked: Any = {
        "model": "claude-any", "max_tokens": 80, "tools": [tool],
        "extra_body": {"temperature": 0},
    }  # fmt: skip
    turns: list[Any] = [{"role": "user", "content": WEATHER}]
    with claude.messages.stream(**asked, messages=turns) as stream:
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    [call] = [b for b in first.content if b.type == "tool_use"]
    assert call.name == "get_weather" and call.input == {"city": "Berlin"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": SUNNY}
    turns += [
        {"role": "assistant", "content": [b.to_dict() for b in first.content]},
        {"role": "user", "content": [result]},
    ]
    second = claude.messages.create(**asked, messages=turns)
    [said] = second.content
    assert said.type == "text" and "20" in said.text
    assert second.usage.cache_read_input_tokens, "the first turn is in the prefix cache"


def test_the_stream_of_a_coding_agent_by_anthropic(served: Stand) -> None:
    """As Claude Code sends it: a nonce in each request, blocks, betas, fields of tomorrow."""
    rules = "You work in a terminal. " * 30
    read: list[int] = []
    for nonce in ("aa1", "bb2"):
        system = [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={nonce};"},
            {"type": "text", "text": rules, "cache_control": {"type": "ephemeral"}},
        ]
        body = {
            "model": "claude-any", "max_tokens": 32000, "stream": True, "system": system,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}],
            "metadata": {"user_id": "u"}, "thinking": {"type": "adaptive"},
            "context_management": {"edits": []}, "tools": [],
        }  # fmt: skip
        headers = {
            "authorization": "Bearer any", "anthropic-version": "2023-06-01",
            "anthropic-beta": "a-2030-01-01,b",
        }  # fmt: skip
        answer = httpx.post(
            f"{served.url}/v1/messages?beta=true", json=body, headers=headers, timeout=60
        )
        assert answer.status_code == 200, answer.text
        events = [json.loads(e.partition("data: ")[2]) for e in answer.text.split("\n\n") if e]
        assert events[-1] == {"type": "message_stop"}
        read.append(events[0]["message"]["usage"]["cache_read_input_tokens"])
    assert read[1] > 100, "the nonce does not defeat the prefix cache"


class Place(BaseModel):
    city: str


def test_responses_with_a_tool_and_a_schema(client: openai.OpenAI) -> None:
    tool: Any = {
        "type": "function", "name": "get_weather", "description": ABOUT, "parameters": CITY,
        "strict": False,
    }  # fmt: skip
    asked: Any = {"model": "default", "tools": [tool], "temperature": 0}
    with client.responses.stream(**asked, input=WEATHER) as stream:
        first = stream.get_final_response()
    [call] = [item for item in first.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"city": "Berlin"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": SUNNY}
    second = client.responses.create(**asked, input=[result], previous_response_id=first.id)
    assert "20" in second.output_text
    assert client.responses.retrieve(second.id).output_text == second.output_text
    made = client.responses.parse(model="default", input="Name a city.", text_format=Place)
    assert isinstance(made.output_parsed, Place)


def test_the_stream_of_a_coding_agent_by_responses(client: openai.OpenAI) -> None:
    """As Codex sends it: stateless, with tools of kinds that nothing here runs."""
    tools: Any = [
        {"type": "function", "name": "shell", "description": "Runs a command", "strict": False,
         "parameters": {"type": "object", "properties": {"command": {"type": "string"}}}},
        {"type": "custom", "name": "apply_patch", "description": "Edits files",
         "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}},
        {"type": "web_search", "external_web_access": False},
    ]  # fmt: skip
    items: Any = [
        {"type": "message", "role": "developer",
         "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello!"}]},
    ]  # fmt: skip
    stream = client.responses.create(
        model="default", instructions="You are a coding agent.", input=items, tools=tools,
        tool_choice="auto", parallel_tool_calls=False, reasoning={"summary": "auto"}, store=False,
        stream=True, include=["reasoning.encrypted_content"], prompt_cache_key="k",
        text={"verbosity": "low"}, max_output_tokens=60,
    )  # fmt: skip
    events = list(stream)
    assert events[0].type == "response.created"
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [tool.type for tool in last.response.tools] == ["function"]


def test_tgi_by_its_client(served: Stand) -> None:
    c = InferenceClient(served.url)
    asked: Any = {"prompt": "The capital of France is", "max_new_tokens": 8}
    assert c.text_generation(**asked) == "".join(c.text_generation(**asked, stream=True))
    held: Any = {"type": "regex", "value": " (Oslo|Rome)"}
    assert c.text_generation(**asked, grammar=held) in (" Oslo", " Rome")


def test_native_generate_and_what_benchmarks_ask(served: Stand) -> None:
    asked = {"text": "The capital of France is", "sampling_params": {"temperature": 0}}
    whole = httpx.post(f"{served.url}/generate", json=asked, timeout=60).json()
    assert whole["text"] and whole["meta_info"]["completion_tokens"] == len(whole["output_ids"])
    asked["sampling_params"] = {"temperature": 0, "regex": " (Oslo|Rome)"}
    held = httpx.post(f"{served.url}/generate", json=asked, timeout=60).json()
    assert held["text"] in (" Oslo", " Rome")
    for path in ("/get_model_info", "/get_server_info", "/v1/loads", "/health_generate", "/ping"):
        assert httpx.get(served.url + path, timeout=60).status_code == 200
    assert httpx.post(f"{served.url}/flush_cache").status_code == 200
