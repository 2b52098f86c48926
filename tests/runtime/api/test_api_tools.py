"""Tool calls and thoughts over HTTP, as the openai client sees them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from fake_engine import FakeEngine
from served_frontend import Served
from tiny_vocabularies import byte_level, spec, write_folder

from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.request import ids_from_bytes

HI = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Berlin"}}\n</tool_call>'
TWO = f"I look. {CALL}\n{CALL.replace('Berlin', 'Paris')}"

TEMPLATE = (
    "{{ bos_token }}{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ m.reasoning_content }}"
    "{% for c in m.tool_calls %}[{{ c.function.name }} {{ c.function.arguments.city }}]{% endfor %}"
    "<|end|>{% endfor %}{{ reasoning_effort }}"
    "{% if enable_thinking is false %}<think></think>{% endif %}<|assistant|>"
)


@pytest.fixture(scope="module")
def text_room(tmp_path_factory: pytest.TempPathFactory) -> TextWorker:
    folder = write_folder(tmp_path_factory.mktemp("model"), byte_level(), TEMPLATE)
    return TextWorker(folder, spec(400), "tiny", reasoning_parser="qwen3")


@pytest.fixture
def say(engine: FakeEngine, text_room: TextWorker) -> Callable[[str], None]:
    def script(text: str) -> None:
        engine.script = asyncio.run(text_room.encode(text, False))

    return script


@pytest.fixture
def client(engine: FakeEngine, serve: Callable[..., Served]) -> Iterator[openai.OpenAI]:
    engine.start()
    served = serve().connected()
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as c:
        yield c


def prompt_of(engine: FakeEngine, room: TextWorker) -> str:
    ids = ids_from_bytes(engine.requests[-1].prompt).tolist()
    return asyncio.run(room.decode(ids, False))


def gathered(stream: Any) -> tuple[str, str, list[list[str]], str | None]:
    text, thoughts, calls, finish = "", "", [], None
    for chunk in stream:
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        thoughts += (choice.delta.model_extra or {}).get("reasoning_content") or ""
        for piece in choice.delta.tool_calls or ():
            if piece.index == len(calls):
                assert piece.id and piece.type == "function"
                calls.append([piece.function.name, ""])
            calls[piece.index][1] += piece.function.arguments
        assert finish is None, "nothing comes after the finish"
        finish = choice.finish_reason
    return text, thoughts, calls, finish


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_calls_with_and_without_a_stream(
    client: openai.OpenAI, engine: FakeEngine, say: Callable[[str], None], chunk: int
) -> None:
    say(TWO)
    engine.chunk = chunk
    asked: dict[str, Any] = {"model": "default", "messages": HI, "tools": [WEATHER]}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    calls = choice.message.tool_calls or []
    assert [json.loads(c.function.arguments)["city"] for c in calls] == ["Berlin", "Paris"]
    assert len({c.id for c in calls}) == 2
    streamed = gathered(client.chat.completions.create(**asked, stream=True))
    whole = [[c.function.name, c.function.arguments] for c in calls]
    assert streamed == ("I look.", "", whole, "tool_calls")


def test_a_call_alone_has_no_content(client: openai.OpenAI, say: Callable[[str], None]) -> None:
    say(CALL)
    answer = client.chat.completions.create(model="default", messages=HI, tools=[WEATHER])
    assert answer.choices[0].message.content is None
    say("No.")
    answer = client.chat.completions.create(model="default", messages=HI, tools=[WEATHER])
    message = answer.choices[0].message
    assert (message.content, message.tool_calls) == ("No.", None)
    assert answer.choices[0].finish_reason == "stop"


def test_a_call_cut_short_has_the_finish_of_length(
    client: openai.OpenAI, say: Callable[[str], None], engine: FakeEngine
) -> None:
    say(CALL)
    assert engine.script is not None
    answer = client.chat.completions.create(
        model="default", messages=HI, tools=[WEATHER], max_tokens=len(engine.script) - 20
    )
    assert answer.choices[0].finish_reason == "length"


def test_none_hides_the_tools_and_reads_no_calls(
    client: openai.OpenAI, say: Callable[[str], None], engine: FakeEngine, text_room: TextWorker
) -> None:
    say(CALL)
    answer = client.chat.completions.create(
        model="default", messages=HI, tools=[WEATHER], tool_choice="none"
    )
    assert answer.choices[0].message.content == CALL
    assert "get_weather" not in prompt_of(engine, text_room)


def test_one_call_at_a_time(client: openai.OpenAI, say: Callable[[str], None]) -> None:
    say(TWO)
    answer = client.chat.completions.create(
        model="default", messages=HI, tools=[WEATHER], parallel_tool_calls=False
    )
    assert len(answer.choices[0].message.tool_calls or ()) == 1


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_forced_call_is_held_to_a_grammar(
    client: openai.OpenAI, say: Callable[[str], None], engine: FakeEngine, choice: Any
) -> None:
    say(CALL)
    answer = client.chat.completions.create(
        model="default", messages=HI, tools=[WEATHER], tool_choice=choice,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )  # fmt: skip
    (call,) = answer.choices[0].message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Berlin"}')
    assert answer.choices[0].finish_reason == "tool_calls"
    grammar = engine.requests[-1].grammar
    assert grammar is not None and grammar.kind == "structural_tag"
    shape = json.loads(grammar.source)["format"]
    assert shape["at_least_one"] and shape["stop_after_first"] is (choice != "required")
    assert shape["tags"][0]["begin"] == CALL.split('{"city')[0]


def test_a_forced_call_excludes_another_form(client: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.BadRequestError, match="exclude") as e:
        client.chat.completions.create(
            model="default", messages=HI, tools=[WEATHER], tool_choice="required",
            response_format={"type": "json_object"},
        )  # fmt: skip
    assert e.value.param == "tool_choice" and not engine.requests


def test_a_tool_that_is_not_there_cannot_be_forced(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="get_weather") as e:
        client.chat.completions.create(
            model="default", messages=HI, tools=[WEATHER],
            tool_choice={"type": "function", "function": {"name": "other"}},
        )  # fmt: skip
    assert e.value.param == "tool_choice"


def test_a_conversation_with_calls_goes_through_the_template(
    client: openai.OpenAI, say: Callable[[str], None], engine: FakeEngine, text_room: TextWorker
) -> None:
    say("Sunny.")
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Berlin"}'},
    }
    client.chat.completions.create(
        model="default", tools=[WEATHER],
        messages=[
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "Hm!"},
            {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"},
        ],
    )  # fmt: skip
    prompt = prompt_of(engine, text_room)
    assert "[get_weather Berlin]" in prompt and "21 degrees" in prompt and "Hm!" in prompt


@pytest.mark.parametrize("chunk", [1, 50])
def test_thoughts_stand_apart(
    client: openai.OpenAI, engine: FakeEngine, say: Callable[[str], None], chunk: int
) -> None:
    say("<think>\nTwo and two.\n</think>\n\nFour.")
    engine.chunk = chunk
    asked: dict[str, Any] = {"model": "default", "messages": HI}
    answer = client.chat.completions.create(**asked)
    message = answer.choices[0].message
    assert message.content == "Four."
    extra = message.model_extra or {}
    assert extra["reasoning_content"] == extra["reasoning"] == "Two and two."
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    thought = answer.usage.completion_tokens_details.reasoning_tokens
    assert thought is not None and 0 < thought < answer.usage.completion_tokens
    assert gathered(client.chat.completions.create(**asked, stream=True)) == (
        "Four.", "Two and two.", [], "stop",
    )  # fmt: skip


def test_thoughts_can_be_left_out_or_left_in(
    client: openai.OpenAI, say: Callable[[str], None]
) -> None:
    say("<think>Hm</think>Four.")
    for field, text in (
        ("include_reasoning", "Four."),
        ("separate_reasoning", "<think>Hm</think>Four."),
    ):
        answer = client.chat.completions.create(
            model="default", messages=HI, extra_body={field: False}
        )
        assert answer.choices[0].message.content == text
        assert "reasoning_content" not in (answer.choices[0].message.model_extra or {})


def test_effort_reaches_the_template(
    client: openai.OpenAI, say: Callable[[str], None], engine: FakeEngine, text_room: TextWorker
) -> None:
    say("Four.")
    for effort, shown, thinks in (("low", "low", True), ("none", "none", False)):
        client.chat.completions.create(model="default", messages=HI, reasoning_effort=effort)
        prompt = prompt_of(engine, text_room)
        assert shown in prompt and ("<think></think>" not in prompt) is thinks


def test_calls_survive_the_engines_death(
    client: openai.OpenAI, engine: FakeEngine, say: Callable[[str], None]
) -> None:
    say(TWO)
    assert engine.script is not None
    engine.budget = len(engine.script) // 2
    stream = client.chat.completions.create(
        model="default", messages=HI, tools=[WEATHER], stream=True
    )
    engine.wait(lambda: engine.budget == 0)
    engine.die()
    engine.budget = None
    engine.start()
    text, _, calls, finish = gathered(stream)
    cities = [json.loads(arguments)["city"] for _, arguments in calls]
    assert (text, cities, finish) == ("I look.", ["Berlin", "Paris"], "tool_calls")


def test_parsers_are_told(client: openai.OpenAI) -> None:
    facts = client.get("/../tokenizer_info", cast_to=object)
    assert facts["tool_parser"] == "hermes" and facts["reasoning_parser"] == "qwen3"


FUNCTIONS = [WEATHER["function"]]


@pytest.mark.parametrize("chunk", [1, 100])
def test_functions_as_they_once_were_called(
    client: openai.OpenAI, engine: FakeEngine, say: Callable[[str], None], chunk: int
) -> None:
    say(TWO)
    engine.chunk = chunk
    asked: dict[str, Any] = {"model": "default", "messages": HI, "functions": FUNCTIONS}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "function_call" and choice.message.tool_calls is None
    call = choice.message.function_call
    assert call is not None and call.name == "get_weather"
    assert json.loads(call.arguments) == {"city": "Berlin"}  # the first of the two
    pieces = []
    for part in client.chat.completions.create(**asked, stream=True):
        delta = part.choices[0].delta
        assert delta.tool_calls is None
        pieces += [delta.function_call] if delta.function_call else []
    assert [p.name for p in pieces if p.name] == ["get_weather"]
    assert "".join(p.arguments or "" for p in pieces) == call.arguments
    assert part.choices[0].finish_reason == "function_call"


def test_messages_of_functions_reach_the_template_as_those_of_tools(
    client: openai.OpenAI, engine: FakeEngine, text_room: TextWorker, say: Callable[[str], None]
) -> None:
    say("Sun.")
    call = {"name": "get_weather", "arguments": '{"city": "Berlin"}'}
    said: list[Any] = [
        *HI,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "get_weather", "content": "sun"},
    ]
    client.chat.completions.create(model="default", messages=said, functions=FUNCTIONS)
    told = prompt_of(engine, text_room)
    assert "[get_weather Berlin]" in told and "<|tool|>sun" in told


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": FUNCTIONS, "tools": [WEATHER]}, "functions"),
        ({"functions": [{"name": "a b"}]}, "functions"),
        ({"functions": FUNCTIONS, "function_call": {"name": "other"}}, "function_call"),
        ({"functions": FUNCTIONS, "function_call": "required"}, "function_call"),
        ({"function_call": {"name": "get_weather"}}, "function_call"),
    ],
)
def test_wrong_functions_are_named(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="default", messages=HI, extra_body=fields)
    assert refused.value.param == param
    assert "tool" not in refused.value.message or "older words" in refused.value.message


def test_thoughts_that_are_not_streamed_come_at_once(
    client: openai.OpenAI, engine: FakeEngine, say: Callable[[str], None]
) -> None:
    say("<think>\nTwo and two.\n</think>\n\nFour, I say.")
    engine.chunk = 1
    told: list[tuple[str, str]] = []
    for chunk in client.chat.completions.create(
        model="default", messages=HI, stream=True, extra_body={"stream_reasoning": False}
    ):
        delta = chunk.choices[0].delta
        told.append(((delta.model_extra or {}).get("reasoning_content") or "", delta.content or ""))
    assert [thought for thought, _ in told if thought] == ["Two and two."]
    assert "".join(text for _, text in told) == "Four, I say."
    say("<think>\nOnly a thought")
    only = [
        (chunk.choices[0].delta.model_extra or {}).get("reasoning_content")
        for chunk in client.chat.completions.create(
            model="default", messages=HI, stream=True, extra_body={"stream_reasoning": False}
        )
    ]
    assert [thought for thought in only if thought] == ["Only a thought"]
