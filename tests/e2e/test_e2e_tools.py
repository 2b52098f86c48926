"""Tool calls of the embedded default model, by the OpenAI library: asked, answered, forced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

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
