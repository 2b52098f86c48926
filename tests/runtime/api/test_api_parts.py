"""Thoughts and tool calls in the dialects' own forms, held against their libraries' types."""

from __future__ import annotations

import json
from typing import Any

import anthropic.types
import msgspec
import openai.types.responses
from pydantic import TypeAdapter

from appliance.runtime.api.messages.body import MessagesRequest
from appliance.runtime.api.messages.form import MessageForm
from appliance.runtime.api.responses.body import ResponsesRequest
from appliance.runtime.api.responses.form import ResponseForm
from appliance.runtime.wire.request import Sampling, TokenRequest, ids_to_bytes
from appliance.runtime.wire.text import CallDelta, TextDelta

DELTAS = (
    TextDelta(1, "", tokens=2, cached=3, reasoning="I should "),
    TextDelta(1, "Let me ", tokens=2, reasoning="look."),
    TextDelta(1, "see.", tokens=1),
    TextDelta(1, "", tokens=2, calls=(CallDelta(0, "", "call_1", "weather"),)),
    TextDelta(1, "", tokens=2, calls=(CallDelta(0, '{"city":'), CallDelta(0, ' "Oslo"}'))),
    TextDelta(1, "", tokens=3, calls=(CallDelta(1, "{}", "call_2", "time"),)),
    TextDelta(1, "", tokens=1, finish="stop", matched=1),
)
WHOLE = TextDelta(
    1, "Let me see.", tokens=13, cached=3, finish="stop", matched=1, reasoning="I should look.",
    calls=(
        CallDelta(0, '{"city": "Oslo"}', "call_1", "weather"), CallDelta(1, "{}", "call_2", "time"),
    ),
)  # fmt: skip
USAGE = {
    "prompt_tokens": 8,
    "completion_tokens": 13,
    "total_tokens": 21,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
TOKENS = [TokenRequest(1, ids_to_bytes(range(8)), Sampling(max_tokens=50))]


def read(stream: bytes, kind: Any) -> list[dict[str, Any]]:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    out: list[dict[str, Any]] = []
    for one in stream.decode().removesuffix("\n\n").split("\n\n"):
        name, data = one.split("\n")
        out.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {out[-1]['type']}"
        if out[-1]["type"] != "ping":
            adapter.validate_python(out[-1])
    return out


def message_form() -> MessageForm:
    body = msgspec.convert(
        {"messages": [{"role": "user", "content": "?"}], "max_tokens": 50}, MessagesRequest
    )
    return MessageForm(body, "msg_1", "tiny", TOKENS)


def test_a_message_of_every_kind_of_block() -> None:
    made = json.loads(message_form().body([WHOLE], USAGE))
    anthropic.types.Message.model_validate(made)
    assert made["content"] == [
        {"type": "thinking", "thinking": "I should look.", "signature": ""},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "call_2", "name": "time", "input": {}},
    ]
    assert made["stop_reason"] == "tool_use"
    assert made["usage"]["input_tokens"] == 5 and made["usage"]["cache_read_input_tokens"] == 3


def test_a_streamed_message_grows_to_the_same() -> None:
    form = message_form()
    stream = b"".join(form.chunk(0, d, None) for d in DELTAS) + form.usage_chunk(USAGE)
    events = read(stream, anthropic.types.RawMessageStreamEvent)
    blocks: dict[int, Any] = {}
    texts: dict[int, str] = {}
    open_block = None
    for e in events:
        if e["type"] == "content_block_start":
            assert open_block is None and e["index"] == len(blocks)
            open_block, blocks[e["index"]], texts[e["index"]] = e["index"], e["content_block"], ""
        elif e["type"] == "content_block_delta":
            assert e["index"] == open_block
            [value] = [v for k, v in e["delta"].items() if k != "type"]
            texts[e["index"]] += value
        elif e["type"] == "content_block_stop":
            assert e["index"] == open_block
            open_block = None
    assert [b["type"] for b in blocks.values()] == ["thinking", "text", "tool_use", "tool_use"]
    assert list(texts.values()) == ["I should look.", "Let me see.", '{"city": "Oslo"}', "{}"]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_arguments_cut_short_are_no_object() -> None:
    cut = msgspec.structs.replace(WHOLE, calls=(CallDelta(0, '{"city": "Os', "c", "weather"),))
    made = json.loads(message_form().body([cut], USAGE))
    assert made["content"][-1]["input"] == {}


def response_form(kept: list[Any]) -> ResponseForm:
    body = msgspec.convert({"input": "?"}, ResponsesRequest)
    return ResponseForm(body, "resp_" + "0" * 48, "tiny", lambda *args: kept.append(args))


def test_a_response_of_every_kind_of_item() -> None:
    kept: list[Any] = []
    made = json.loads(response_form(kept).body([WHOLE], USAGE))
    openai.types.responses.Response.model_validate(made)
    kinds = [item["type"] for item in made["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    assert made["output"][2]["arguments"] == '{"city": "Oslo"}'
    assert made["usage"]["output_tokens_details"]["reasoning_tokens"] == 4
    [(response, [message])] = kept
    assert response["output"] == made["output"]
    assert message["content"] == "Let me see." and message["reasoning_content"] == "I should look."
    assert [c["function"]["name"] for c in message["tool_calls"]] == ["weather", "time"]


def test_a_streamed_response_grows_to_the_same() -> None:
    kept: list[Any] = []
    whole = json.loads(response_form([]).body([WHOLE], USAGE))
    form = response_form(kept)
    stream = b"".join(form.chunk(0, d, None) for d in DELTAS) + form.usage_chunk(USAGE)
    events = read(stream, openai.types.responses.ResponseStreamEvent)
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    final = events[-1]["response"]
    assert events[-1]["type"] == "response.completed" and final["output"] == whole["output"]
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert done == final["output"]
    arguments: dict[int, str] = {}
    for e in events:
        if e["type"] == "response.function_call_arguments.delta":
            at = e["output_index"]
            arguments[at] = arguments.get(at, "") + e["delta"]
    assert arguments == {2: '{"city": "Oslo"}', 3: "{}"}
    assert len(kept) == 1
