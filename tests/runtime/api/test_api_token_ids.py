"""With return_token_ids every id reaches the client, held-back text or not."""

from __future__ import annotations

import json
from typing import Any

from appliance.runtime.api.chat import ChatForm
from appliance.runtime.api.completions import CompletionForm
from appliance.runtime.api.schema import ChatRequest, CompletionRequest
from appliance.runtime.wire.request import Sampling, TokenRequest
from appliance.runtime.wire.text import TextDelta

TOKENS = [TokenRequest(1, b"\x07\0\0\0", Sampling(max_tokens=4))]
DELTAS = [
    TextDelta(rid=1, text="", tokens=1, ids=(195,)),
    TextDelta(rid=1, text="é", tokens=1, ids=(169,)),
    TextDelta(rid=1, text="", tokens=1, ids=(226,)),
    TextDelta(rid=1, text="\ufffd", tokens=1, ids=(130,), finish="length"),
]


def ids(events: list[bytes]) -> list[int]:
    shown: list[dict[str, Any]] = [json.loads(e.removeprefix(b"data: ")) for e in events if e]
    return [i for event in shown for i in event["choices"][0]["token_ids"]]


def test_completion_chunks_hold_every_id() -> None:
    form = CompletionForm(
        CompletionRequest(prompt="x", stream=True, return_token_ids=True), "a", "m", TOKENS, [""]
    )
    assert ids([form.chunk(0, delta, None) for delta in DELTAS]) == [195, 169, 226, 130]


def test_chat_chunks_hold_every_id() -> None:
    body = ChatRequest(messages=[{"role": "user"}], stream=True, return_token_ids=True)
    form = ChatForm(body, "a", "m", TOKENS)
    assert ids([form.chunk(0, delta, None) for delta in DELTAS]) == [195, 169, 226, 130]


def test_without_it_nothing_is_sent_for_held_back_text() -> None:
    form = CompletionForm(CompletionRequest(prompt="x", stream=True), "a", "m", TOKENS, [""])
    assert [bool(form.chunk(0, delta, None)) for delta in DELTAS] == [False, True, False, True]
