"""The death of an engine is a pause in every dialect."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from served_frontend import Served
from sse_reader import expected

from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.text import Chat

TOKENS = 30
HI = [{"role": "user", "content": "Hi"}]
OFF = {"enable_thinking": False}


def _deltas(kind: str, *path: str) -> Callable[[list[dict[str, Any]]], str]:
    def text(events: list[dict[str, Any]]) -> str:
        out = ""
        for event in events:
            if event.get("type") == kind:
                value: Any = event
                for key in path:
                    value = value[key]
                out += value
        return out

    return text


ROUTES: list[tuple[str, dict[str, Any], Any, Callable[[list[dict[str, Any]]], str]]] = [
    (
        "/v1/messages",
        {"messages": HI, "max_tokens": TOKENS},
        Chat(HI, None, OFF),
        _deltas("content_block_delta", "delta", "text"),
    ),
    (
        "/v1/responses",
        {"input": HI, "max_output_tokens": TOKENS},
        Chat(HI),
        _deltas("response.output_text.delta", "delta"),
    ),
    (
        "/generate",
        {"text": "Hi", "sampling_params": {"max_new_tokens": TOKENS}},
        "Hi",
        lambda events: events[-1]["text"],
    ),
    (
        "/generate_stream",
        {"inputs": "Hi", "parameters": {"max_new_tokens": TOKENS}},
        "Hi",
        lambda events: events[-1]["generated_text"],
    ),
]


@pytest.mark.parametrize(("route", "body", "prompt", "text"), ROUTES, ids=[r[0] for r in ROUTES])
def test_a_stream_goes_on_with_the_next_token(
    served: Served,
    engine: FakeEngine,
    text_room: TextWorker,
    route: str,
    body: dict[str, Any],
    prompt: Any,
    text: Callable[[list[dict[str, Any]]], str],
) -> None:
    engine.budget = 11
    got: list[str] = []

    def ask() -> None:
        got.append(httpx.post(served.url + route, json={**body, "stream": True}, timeout=30).text)

    thread = threading.Thread(target=ask)
    thread.start()
    engine.wait(lambda: engine.budget == 0)
    served.until(lambda: any(row.output_tokens == 11 for row in served.frontend.rows()))
    engine.die()
    engine.budget = None
    engine.start()
    thread.join(30)
    lines = [line for line in got[0].splitlines() if line.startswith("data:")]
    events = [json.loads(line[5:]) for line in lines if line != "data: [DONE]"]
    assert text(events) == expected(text_room, prompt, TOKENS)
    assert len(engine.requests) == 2 and len(engine.requests[1].output) == 11 * 4
