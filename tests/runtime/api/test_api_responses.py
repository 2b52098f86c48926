"""The real openai client's responses against a served frontend, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_engine import FakeEngine
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from served_frontend import Served
from sse_reader import expected, prompt_ids

from appliance.runtime.api.responses import store as stores
from appliance.runtime.api.responses.store import Kept, ResponseStore, new_id
from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.request import ids_from_bytes
from appliance.runtime.wire.text import Chat

HI: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


def client(served: Served, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", **options)


def prompt(engine: FakeEngine, at: int = -1) -> list[int]:
    ids: list[int] = ids_from_bytes(engine.requests[at].prompt).tolist()
    return ids


def stream(served: Served, **body: Any) -> list[dict[str, Any]]:
    """Events of a stream, each told by name and fit for the library's own types."""
    answer = httpx.post(f"{served.url}/v1/responses", json={"stream": True, **body})
    assert answer.status_code == 200, answer.text
    known: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    out: list[dict[str, Any]] = []
    for one in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = one.split("\n")
        out.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {out[-1]['type']}"
        known.validate_python(out[-1])
    assert [e["sequence_number"] for e in out] == list(range(len(out)))
    return out


def test_a_response(served: Served, engine: FakeEngine, text_room: TextWorker) -> None:
    engine.cached = 2
    with client(served) as c:
        answer = c.responses.create(
            model="default", input="Hi", max_output_tokens=12, metadata={"k": "v"}
        )
    assert answer.output_text == expected(text_room, Chat(HI), 12)
    assert answer.status == "incomplete" and answer.metadata == {"k": "v"}
    assert answer.incomplete_details and answer.incomplete_details.reason == "max_output_tokens"
    usage = answer.usage
    assert usage and usage.output_tokens == 12 and usage.input_tokens_details.cached_tokens == 2
    assert (
        usage.input_tokens == len(prompt(engine)) and usage.total_tokens == usage.input_tokens + 12
    )
    Response.model_validate(answer.to_dict(), strict=False)


def test_a_streamed_response(served: Served, engine: FakeEngine, text_room: TextWorker) -> None:
    engine.script = prompt_ids(text_room, "Hello there")
    with client(served) as c:
        with c.responses.stream(model="default", input=HI) as events:
            text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
            final = events.get_final_response()
    assert text == final.output_text == "Hello there"
    assert final.status == "completed" and final.usage and final.usage.output_tokens > 2


def test_the_events_in_their_order(served: Served) -> None:
    kinds = [
        e["type"].removeprefix("response.") for e in stream(served, input="Hi", max_output_tokens=5)
    ]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]


def test_logprobs(served: Served) -> None:
    with client(served) as c:
        answer = c.responses.create(
            model="default", input="Hi", max_output_tokens=4, top_logprobs=2,
            include=["message.output_text.logprobs"],
        )  # fmt: skip
    [item] = answer.output
    assert item.type == "message" and item.content[0].type == "output_text"
    logprobs = item.content[0].logprobs
    assert logprobs is not None and len(logprobs) == 4 and len(logprobs[0].top_logprobs) == 2
    events = stream(served, input="Hi", max_output_tokens=4, top_logprobs=1)
    done = next(e for e in events if e["type"] == "response.output_text.done")
    assert len(done["logprobs"]) == 4


def test_a_turn_follows_a_turn(served: Served, engine: FakeEngine, text_room: TextWorker) -> None:
    engine.script = prompt_ids(text_room, "Hello there")
    with client(served) as c:
        first = c.responses.create(model="default", input="Hi", instructions="Be brief.")
        with c.responses.stream(
            model="default", input="More", previous_response_id=first.id
        ) as events:
            second = events.get_final_response()
        third = c.responses.create(model="default", input="Yet", previous_response_id=second.id)
    turns = [
        *HI,
        {"role": "assistant", "content": "Hello there"},
        {"role": "user", "content": "More"},
    ]
    assert prompt(engine, 1) == prompt_ids(text_room, Chat(turns)), "instructions hold for one turn"
    turns += [{"role": "assistant", "content": "Hello there"}, {"role": "user", "content": "Yet"}]
    assert prompt(engine, 2) == prompt_ids(text_room, Chat(turns))
    assert third.previous_response_id == second.id


def test_what_is_kept_is_shown_and_deleted_by_any_frontend(
    served: Served, serve: Callable[..., Served]
) -> None:
    other = serve(index=1).connected()
    with client(served) as c, client(other) as d:
        made = c.responses.create(model="default", input="Hi", max_output_tokens=3)
        assert d.responses.retrieve(made.id).to_dict() == made.to_dict()
        [item] = d.responses.input_items.list(made.id).data
        assert item.type == "message" and item.content[0].type == "input_text"
        with pytest.raises(openai.BadRequestError, match="background"):
            d.responses.cancel(made.id)
        d.responses.delete(made.id)
        for gone in (made.id, "resp_" + "0" * 48, "..%2f..%2fetc"):
            with pytest.raises(openai.NotFoundError):
                c.responses.retrieve(gone)
        with pytest.raises(openai.BadRequestError) as refused:
            c.responses.create(model="default", input="Hi", previous_response_id=made.id)
        assert refused.value.param == "previous_response_id"


def test_tokens_are_counted(served: Served, engine: FakeEngine) -> None:
    with client(served) as c:
        first = c.responses.create(model="default", input="Hi", max_output_tokens=3)
        more = {"model": "default", "input": "More", "previous_response_id": first.id}
        counted = c.responses.input_tokens.count(**more)
        c.responses.create(**more, max_output_tokens=3)
    assert counted.input_tokens == len(prompt(engine))


def test_what_shall_not_be_kept_is_not(served: Served) -> None:
    with client(served) as c:
        made = c.responses.create(model="default", input="Hi", max_output_tokens=3, store=False)
        with pytest.raises(openai.NotFoundError):
            c.responses.retrieve(made.id)


def test_items_of_an_agents_turn(served: Served, engine: FakeEngine, text_room: TextWorker) -> None:
    items: Any = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Use tools."}]},
        {"role": "user", "content": "Weather in Oslo?"},
        {"type": "reasoning", "id": "rs_1", "summary": [],
         "content": [{"type": "reasoning_text", "text": "I call."}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}]},
        {"type": "function_call", "call_id": "call_1", "name": "weather",
         "arguments": '{"city":"Oslo"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "Rain"},
    ]  # fmt: skip
    with client(served) as c:
        answer = c.responses.create(
            model="default", input=items, max_output_tokens=3, store=False,
            tools=[WEATHER, {"type": "web_search"}], include=["reasoning.encrypted_content"],
            prompt_cache_key="k", parallel_tool_calls=True, tool_choice="auto",
        )  # fmt: skip
    assert [t.type for t in answer.tools] == ["function"], "what cannot be run is not offered"
    call = {"name": "weather", "arguments": '{"city":"Oslo"}'}
    want = Chat(
        [
            {"role": "developer", "content": "Use tools."},
            {"role": "user", "content": "Weather in Oslo?"},
            {
                "role": "assistant",
                "reasoning_content": "I call.",
                "content": "Let me see.",
                "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "Rain"},
        ],
        [{"type": "function", "function": {k: v for k, v in WEATHER.items() if k != "type"}}],
    )
    assert prompt(engine) == prompt_ids(text_room, want)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "cat", "content": "?"}]}, "role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"input": "Hi", "background": True}, "background"),
        ({"input": "Hi", "temperature": 3}, "temperature"),
        ({"input": "Hi", "max_output_tokens": 100_000}, "context"),
        ({"input": "Hi", "tools": [{"type": "function"}]}, "name"),
        ({"input": "Hi", "tool_choice": {"type": "mcp"}}, "mcp"),
    ],
)
def test_errors_before_the_stream(served: Served, wrong: Any, named: str) -> None:
    for streamed in (False, True):
        sent = {**wrong, "stream": streamed}
        answer = httpx.post(f"{served.url}/v1/responses", json=sent)
        assert answer.status_code == 400 and named in answer.json()["error"]["message"]


def test_an_error_in_a_stream_ends_it(served: Served, engine: FakeEngine) -> None:
    engine.budget = 3
    with client(served) as c:
        last = None
        for event in c.responses.create(model="default", input="Hi", stream=True):
            engine.error = "it broke."
            engine.budget = None
            last = event
        assert last is not None and last.type == "response.failed"
        assert last.response.error and "it broke" in last.response.error.message
        with pytest.raises(openai.NotFoundError):
            c.responses.retrieve(last.response.id)


def test_a_client_that_leaves_ends_its_request(served: Served, engine: FakeEngine) -> None:
    engine.budget = 2
    with client(served) as c:
        with c.responses.create(model="default", input="Hi", stream=True) as events:
            next(iter(events))
    engine.wait(lambda: bool(engine.aborts))


def kept(text: str, owner: str = "") -> Kept:
    return Kept(owner, {"id": text}, [], [{"role": "user", "content": text}])


def test_a_store_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_FILES", 5)
    monkeypatch.setattr(stores, "TIDY_EVERY", 2)
    monkeypatch.setattr(stores, "IN_MEMORY", 1)
    store, ids = ResponseStore(tmp_path / "kept"), [new_id() for _ in range(21)]
    for id in ids:
        store.put(id, kept(id))
    assert len(list((tmp_path / "kept").iterdir())) == 5
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
    assert store.get(ids[-1], "") == kept(ids[-1])


def test_a_store_keeps_callers_apart_and_bears_a_full_disk(tmp_path: Path) -> None:
    store, id = ResponseStore(tmp_path / "kept"), new_id()
    store.put(id, kept("x", "alice"))
    assert store.get(id, "bob") is None and not store.delete(id, "bob")
    assert store.get(id, "alice") == kept("x", "alice")
    (tmp_path / "file").write_text("no folder")
    broken = ResponseStore(tmp_path / "file")
    broken.put(id, kept("y"))
    assert broken.get(id, "") == kept("y") and broken.delete(id, "")
    assert broken.get(id, "") is None
