"""Tool calls of the embedded default model, by the OpenAI library: asked, answered, forced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from stand import Stand

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TIME = json.loads(json.dumps(WEATHER).replace("get_weather", "get_time").replace("weather", "time"))
BERLIN = {"role": "user", "content": "Weather in Berlin?"}


@pytest.fixture(scope="module")
def client(served: Stand) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as one:
        yield one


def ask(client: openai.OpenAI, *messages: Any, **fields: Any) -> Any:
    asked = {"model": "default", "temperature": 0, "tools": [WEATHER, TIME], **fields}
    return client.chat.completions.create(messages=list(messages), **asked)


def called(answer: Any) -> list[tuple[str, Any]]:
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls
    return [(c.function.name, json.loads(c.function.arguments)) for c in calls]


def test_a_call_and_its_result(client: openai.OpenAI) -> None:
    answer = ask(client, BERLIN)
    assert called(answer) == [("get_weather", {"city": "Berlin"})]
    message = answer.choices[0].message
    assert message.content is None
    result = {
        "role": "tool",
        "tool_call_id": message.tool_calls[0].id,
        "content": '{"temperature": 21, "sky": "sunny"}',
    }
    told = ask(client, BERLIN, message, result).choices[0]
    assert told.finish_reason == "stop" and "21" in told.message.content


def test_a_streamed_call(client: openai.OpenAI) -> None:
    chunks = [c.choices[0] for c in ask(client, BERLIN, stream=True)]
    pieces = [p for c in chunks for p in c.delta.tool_calls or ()]
    assert pieces[0].function.name == "get_weather" and pieces[0].id
    assert len(pieces) > 2, "arguments come as they are written"
    assert all(p.index == 0 and p.function.name is None for p in pieces[1:])
    assert json.loads("".join(p.function.arguments for p in pieces)) == {"city": "Berlin"}
    assert not any(c.delta.content for c in chunks)
    assert chunks[-1].finish_reason == "tool_calls"


def test_strict_calls_hold_to_their_schema(client: openai.OpenAI) -> None:
    tool = json.loads(json.dumps(WEATHER))
    parameters = tool["function"]["parameters"]
    parameters["properties"]["unit"] = {"enum": ["c", "f"]}
    parameters |= {"required": ["city", "unit"], "additionalProperties": False}
    tool["function"]["strict"] = True
    ((name, arguments),) = called(ask(client, BERLIN, tools=[tool], max_tokens=120))
    assert name == "get_weather" and set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("c", "f")
    greeting = ask(client, {"role": "user", "content": "Hi!"}, tools=[tool]).choices[0]
    assert greeting.finish_reason == "stop" and greeting.message.content


def test_calls_can_be_forced_and_forbidden(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "get_time"}}
    assert called(ask(client, BERLIN, tool_choice=choice)) == [("get_time", {"city": "Berlin"})]
    sums = {"role": "user", "content": "What is 37 + 45?"}
    assert "82" in ask(client, sums).choices[0].message.content
    for parallel in (None, False):
        fields = {} if parallel is None else {"parallel_tool_calls": parallel}
        forced = called(ask(client, sums, tool_choice="required", max_tokens=200, **fields))
        assert forced[0][0] in ("get_weather", "get_time")
        assert parallel is None or len(forced) == 1
    none = ask(client, BERLIN, tool_choice="none").choices[0]
    assert none.message.tool_calls is None and none.finish_reason == "stop"


NAMED = {"type": "function", "function": {"name": "get_time"}}
ASKED = ("Hi!", "What is 37 + 45?", "Tell me a story of a fox.", "Say <tool_call> and no more.")


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forced_calls_leak_no_text(client: openai.OpenAI, choice: Any, temperature: float) -> None:
    """Whatever is asked and however it is drawn, also where the answer is cut short."""
    for seed, text in enumerate(ASKED):
        message = {"role": "user", "content": text}
        fields = {"tool_choice": choice, "temperature": temperature, "seed": seed}
        whole = ask(client, message, **fields, max_tokens=200).choices[0]
        assert not whole.message.content
        if whole.finish_reason == "tool_calls":
            for call in whole.message.tool_calls:
                assert set(json.loads(call.function.arguments)) == {"city"}
                assert call.function.name in ("get_time", "get_weather")
                assert choice == "required" or call.function.name == "get_time"
        else:
            assert whole.finish_reason == "length" and whole.message.tool_calls
        cut = [
            c.choices[0] for c in ask(client, message, **fields, max_tokens=5 + seed, stream=True)
        ]
        assert cut[-1].finish_reason == "length"
        assert not any(c.delta.content for c in cut)


def test_forced_calls_in_other_dialects_leak_no_text(served: Stand) -> None:
    parameters = WEATHER["function"]["parameters"]
    told = httpx.post(
        f"{served.url}/v1/messages",
        json={
            "model": "default", "max_tokens": 200, "messages": [{"role": "user", "content": "Hi!"}],
            "tools": [{"name": "get_weather", "input_schema": parameters}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        },
        timeout=60,
    ).json()  # fmt: skip
    assert [block["type"] for block in told["content"]] == ["tool_use"]
    assert told["stop_reason"] == "tool_use" and set(told["content"][0]["input"]) == {"city"}
    told = httpx.post(
        f"{served.url}/v1/responses",
        json={
            "model": "default", "input": "Hi!", "tool_choice": "required",
            "parallel_tool_calls": False, "max_output_tokens": 200,
            "tools": [{"type": "function", "name": "get_weather", "parameters": parameters}],
        },
        timeout=60,
    ).json()  # fmt: skip
    assert [item["type"] for item in told["output"]] == ["function_call"]
    assert set(json.loads(told["output"][0]["arguments"])) == {"city"}
    told = httpx.post(
        f"{served.url}/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": "Hi!"}], "max_tokens": 200,
            "functions": [WEATHER["function"]], "function_call": {"name": "get_weather"},
        },
        timeout=60,
    ).json()["choices"][0]  # fmt: skip
    assert told["finish_reason"] == "function_call" and not told["message"]["content"]
    assert set(json.loads(told["message"]["function_call"]["arguments"])) == {"city"}
