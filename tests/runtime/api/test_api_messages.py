"""The real anthropic client against a served frontend, and the requests of its agents."""

from __future__ import annotations

import json
import re
from typing import Any

import anthropic
import httpx
import pytest
from fake_engine import FakeEngine
from served_frontend import Served
from sse_reader import expected, prompt_ids

from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.request import ids_from_bytes
from appliance.runtime.wire.text import Chat

HI: Any = [{"role": "user", "content": "Hi"}]
OFF = {"enable_thinking": False}
BASE = {"model": "default", "max_tokens": 12, "messages": HI}


def client(served: Served, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, **{"api_key": "none", **options})


def prompt(engine: FakeEngine, at: int = -1) -> list[int]:
    ids: list[int] = ids_from_bytes(engine.requests[at].prompt).tolist()
    return ids


def named(body: str) -> list[dict[str, Any]]:
    """Every event; its name must be its type."""
    out = []
    for one in body.removesuffix("\n\n").split("\n\n"):
        name, data = one.split("\n")
        out.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {out[-1]['type']}"
    return out


def test_a_message(served: Served, engine: FakeEngine, text_room: TextWorker) -> None:
    engine.cached = 2
    with client(served) as c:
        answer = c.messages.create(**BASE)
    [block] = answer.content
    assert block.type == "text" and block.text == expected(text_room, Chat(HI, None, OFF), 12)
    assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
    assert answer.usage.output_tokens == 12 and answer.usage.cache_read_input_tokens == 2
    assert answer.usage.input_tokens == len(prompt(engine)) - 2
    assert answer._request_id and answer.id == f"msg_{answer._request_id}"


def test_a_streamed_message(served: Served, text_room: TextWorker) -> None:
    with client(served) as c:
        with c.messages.stream(**BASE) as stream:
            kinds = [e.type for e in stream]
            final = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    [block] = final.content
    assert block.type == "text" and block.text == expected(text_room, Chat(HI, None, OFF), 12)
    assert final.stop_reason == "max_tokens" and final.usage.output_tokens == 12


def test_the_events_in_their_order(served: Served) -> None:
    body = httpx.post(f"{served.url}/v1/messages?beta=true", json={**BASE, "stream": True})
    assert body.headers["content-type"].startswith("text/event-stream")
    kinds = [e["type"] for e in named(body.text)]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_stop_sequence(served: Served, engine: FakeEngine, text_room: TextWorker) -> None:
    engine.script = prompt_ids(text_room, "Hello there, world") + [5] * 50
    with client(served) as c:
        answer = c.messages.create(**BASE, stop_sequences=["there"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "there")


def test_the_end_of_a_turn(served: Served, engine: FakeEngine, text_room: TextWorker) -> None:
    engine.script = prompt_ids(text_room, "Hello")
    with client(served) as c:
        assert c.messages.create(**{**BASE, "max_tokens": 20_000}).stop_reason == "end_turn"
    assert engine.requests[-1].sampling.max_tokens < 512, "what the context leaves is the limit"


def test_an_answer_that_fills_the_context(served: Served) -> None:
    with client(served) as c:
        answer = c.messages.create(**{**BASE, "max_tokens": 20_000})
    assert answer.stop_reason == "model_context_window_exceeded"


def test_a_prompt_too_long_is_told_as_claude_code_reads_it(served: Served) -> None:
    said = {"role": "user", "content": "word " * 600}
    with client(served) as c, pytest.raises(anthropic.BadRequestError) as e:
        c.messages.create(**{**BASE, "messages": [said]})
    read = re.search(r"prompt is too long[^0-9]*(\d+)\s*tokens?\s*>\s*(\d+)", e.value.message)
    assert read and int(read[1]) > 600 and int(read[2]) == 511


def test_system_tools_and_results_are_the_chats(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    with client(served) as c:
        c.messages.create(
            model="claude-opus-4", max_tokens=4,
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            tools=[{"name": "weather", "description": "of a city", "input_schema": schema}],
            messages=[
                {"role": "user", "content": "Weather in Oslo?"},
                {"role": "assistant", "content": [
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "toolu_1", "name": "weather",
                     "input": {"city": "Oslo"}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": [
                        {"type": "text", "text": "Rain"}]},
                    {"type": "text", "text": "And now?"},
                ]},
            ],
        )  # fmt: skip
    arguments = {"name": "weather", "arguments": '{"city":"Oslo"}'}
    want = Chat(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather in Oslo?"},
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [{"id": "toolu_1", "type": "function", "function": arguments}],
            },
            {"role": "tool", "tool_call_id": "toolu_1", "content": "Rain"},
            {"role": "user", "content": "And now?"},
        ],
        [
            {
                "type": "function",
                "function": {"name": "weather", "description": "of a city", "parameters": schema},
            }
        ],
        OFF,
    )
    assert prompt(engine) == prompt_ids(text_room, want)


def test_an_agents_nonce_does_not_reach_the_prompt(served: Served, engine: FakeEngine) -> None:
    for nonce in ("a1", "b2"):
        header = f"x-anthropic-billing-header: cc_version=2; cch={nonce};"
        blocks = [{"type": "text", "text": header}, {"type": "text", "text": "You help."}]
        sent = {**BASE, "system": blocks}
        assert httpx.post(f"{served.url}/v1/messages", json=sent).status_code == 200
    assert prompt(engine, 0) == prompt(engine, 1)
    with client(served) as c:
        c.messages.create(**BASE, system="You help.")
    assert prompt(engine, 2) == prompt(engine, 0)


def test_an_agents_budget_does_not_reach_the_prompt(served: Served, engine: FakeEngine) -> None:
    notes = ""
    for left in (15_000_000, 14_999_436):
        notes += f"\n<total_tokens>{left} tokens left</total_tokens>"
        sent = {**BASE, "system": f"You help.{notes}"}
        assert httpx.post(f"{served.url}/v1/messages", json=sent).status_code == 200
    with client(served) as c:
        c.messages.create(**BASE, system="You help.")
        said = "Say <total_tokens>1 tokens left</total_tokens>"
        c.messages.create(**{**BASE, "messages": [{"role": "user", "content": said}]})
    assert prompt(engine, 0) == prompt(engine, 1) == prompt(engine, 2)
    assert len(prompt(engine, 3)) > len(said) // 4  # what a user says stays


def test_the_last_message_of_the_assistant_goes_on(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    messages = [*HI, {"role": "assistant", "content": "Well"}]
    with client(served) as c:
        c.messages.create(model="default", max_tokens=3, messages=messages)
    assert prompt(engine) == prompt_ids(text_room, Chat(messages, None, OFF, False, True))


def test_tokens_are_counted(served: Served, engine: FakeEngine) -> None:
    with client(served) as c:
        count = c.messages.count_tokens(model="default", messages=HI)
        c.messages.create(**BASE)
    assert count.input_tokens == len(prompt(engine))


@pytest.mark.parametrize(
    ("wrong", "error", "named_field"),
    [
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        ({"model": "gpt-9"}, anthropic.NotFoundError, "gpt-9"),
        ({"extra_body": {"temperature": 7}}, anthropic.BadRequestError, "temperature"),
        ({"messages": [{"role": "cat", "content": "?"}]}, anthropic.BadRequestError, "role"),
        ({"messages": [{"role": "user", "content": 7}]}, anthropic.BadRequestError, "content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            anthropic.BadRequestError,
            "image",
        ),
        (
            {"tool_choice": {"type": "tool", "name": "cat"}},
            anthropic.BadRequestError,
            "tool_choice",
        ),
    ],
)
def test_errors_in_anthropics_envelope(
    served: Served, wrong: Any, error: type[anthropic.APIStatusError], named_field: str
) -> None:
    with client(served, max_retries=0) as c:
        with pytest.raises(error, match=named_field) as raised:
            c.messages.create(**{**BASE, **wrong})
    assert raised.value.request_id
    body: Any = raised.value.body
    assert body["type"] == "error" and body["error"]["type"].endswith("_error")


def test_a_missing_field_is_named(served: Served) -> None:
    answer = httpx.post(f"{served.url}/v1/messages", json={"messages": HI})
    assert answer.status_code == 400 and "max_tokens" in answer.json()["error"]["message"]


def test_an_error_in_a_stream_is_raised(served: Served, engine: FakeEngine) -> None:
    engine.budget = 3
    with client(served, max_retries=0) as c:
        stream = c.messages.create(**{**BASE, "max_tokens": 50}, stream=True)
        with pytest.raises(anthropic.APIStatusError, match="it broke"):
            for _ in stream:
                engine.error = "it broke."
                engine.budget = None


def test_a_client_that_leaves_ends_its_request(served: Served, engine: FakeEngine) -> None:
    engine.budget = 2
    with client(served) as c:
        with c.messages.stream(**BASE) as stream:
            next(iter(stream))
    engine.wait(lambda: bool(engine.aborts))


def test_models_as_its_client_reads_them(served: Served) -> None:
    with client(served) as c:
        assert [m.id for m in c.models.list()] == ["org/tiny", "small"]
        assert c.models.retrieve("small").display_name == "small"
        with pytest.raises(anthropic.NotFoundError):
            c.models.retrieve("gpt-9")


def test_what_agents_probe(served: Served) -> None:
    assert httpx.head(served.url).status_code == 200
    with client(served, default_headers={"anthropic-beta": "new-2030,old"}) as c:
        answer = c.messages.create(
            **BASE,
            metadata={"user_id": "u"},
            extra_body={"context_management": {"edits": []}, "temperature": 0.5, "top_k": 5},
        )
    assert answer.usage.output_tokens == 12
