"""No body, whatever its fields hold, ends in a fault of ours in any dialect."""

from __future__ import annotations

import copy
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_frontend import Served

TOOL = {"type": "object", "properties": {"a": {"type": "string"}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/messages": {
        "model": "default",
        "max_tokens": 2,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "t"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "r"},
                {"type": "document", "source": {"type": "text", "data": "d"}},
            ]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": TOOL}],
        "tool_choice": {"type": "auto", "name": "f"},
        "thinking": {"type": "enabled", "budget_tokens": 1},
        "output_config": {"effort": "low"},
        "stop_sequences": ["x"],
        "temperature": 0,
        "top_k": 1,
        "top_p": 1,
    },
    "/v1/responses": {
        "model": "default",
        "store": False,
        "max_output_tokens": 2,
        "instructions": "i",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "t"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "r"},
        ],
        "tools": [{"type": "function", "name": "f", "description": "d", "parameters": TOOL}],
        "tool_choice": {"type": "function", "name": "f"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "include": ["message.output_text.logprobs"],
        "metadata": {"a": "b"},
    },
    "/generate": {
        "text": ["a", "b"],
        "rid": ["x", "y"],
        "sampling_params": [
            {"max_new_tokens": 2, "temperature": 0, "stop": ["x"], "top_k": 1},
            {"max_new_tokens": 2, "logit_bias": {"7": 1.0}, "min_new_tokens": 0},
        ],
        "return_logprob": [True, False],
        "logprob_start_len": [0, -1],
        "top_logprobs_num": [1, 0],
    },
    "/generate_stream": {
        "inputs": "a",
        "parameters": {"max_new_tokens": 2, "stop": ["x"], "temperature": 0.5, "top_k": 3,
                       "top_p": 0.5, "seed": 1, "top_n_tokens": 1, "details": True},
        "stream": True,
    },
}  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=4)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "text", "name", "a"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list) else ()
    )  # fmt: skip
    return [path] * bool(path) + [p for key, one in inner for p in places(one, (*path, key))]


def replaced(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    out = copy.deepcopy(body)
    at: Any = out
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return out


@pytest.mark.parametrize("route", BODIES)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_value_in_any_place(served: Served, route: str, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(places(BODIES[route])))
    body = replaced(BODIES[route], path, data.draw(VALUES))
    answer = httpx.post(served.url + route, json=body)
    assert answer.status_code in (200, 400, 404), (path, answer.text)
    if answer.status_code != 200:
        assert answer.json()["error"]


@pytest.mark.parametrize("route", BODIES)
def test_the_bodies_themselves_are_taken(served: Served, route: str) -> None:
    answer = httpx.post(served.url + route, json=BODIES[route])
    assert answer.status_code == 200, answer.text
