"""Numbers that nobody should send: each is a value in range, or a refusal that names its field."""

from __future__ import annotations

import json
import math
import types
import typing
from typing import Any

import httpx
import msgspec
import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from served_frontend import Served

from appliance.errors import RequestError
from appliance.runtime.api.schema import ChatRequest, CompletionRequest, decode_body

HOSTILE = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "-0.0", "-0", "0", "0.5", "1.0",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616",
    "1" + "0" * 400, "1e2", "2147483648", "-1", "true", '"1"', "[]", "{}", "[1]", "01", "+1", ".5",
    "0x10", "1_000",
)  # fmt: skip


def numeric(kind: type) -> list[tuple[str, type]]:
    """(field, int or float) of every field that takes a number, through Annotated and unions."""

    def leaves(hint: Any) -> set[Any]:
        origin = typing.get_origin(hint)
        if origin is typing.Annotated:
            return leaves(typing.get_args(hint)[0])
        if origin in (typing.Union, types.UnionType):
            return set().union(*map(leaves, typing.get_args(hint)))
        return {hint}

    hints = typing.get_type_hints(kind, include_extras=True)
    found = [(name, leaves(hint) & {int, float}) for name, hint in hints.items()]
    return [(name, kinds.pop()) for name, kinds in found if kinds]


BASE: dict[type, dict[str, Any]] = {
    ChatRequest: {"messages": [{"role": "user", "content": "Hi"}]},
    CompletionRequest: {"prompt": "Hi"},
}
FIELDS = [(kind, *field) for kind in BASE for field in numeric(kind)]


def body_of(kind: type, field: str, number: str) -> bytes:
    return json.dumps(BASE[kind]).encode()[:-1] + f', "{field}": {number}}}'.encode()


def check(kind: type, field: str, number_kind: type, number: str) -> None:
    try:
        body = decode_body(kind, body_of(kind, field, number))  # type: ignore[type-var]
    except RequestError as e:
        assert e.status == 400
        assert e.code == "invalid_json" or (e.param == field and field in e.message), e.message
        return
    value = msgspec.structs.asdict(body)[field]
    assert value is None or type(value) is number_kind
    if value is not None:
        assert math.isfinite(value) and -(1 << 63) <= value < 1 << 63


def test_every_field_is_known() -> None:
    names = {name for _, name, _ in FIELDS}
    assert names >= {"temperature", "top_p", "n", "seed", "max_tokens", "top_k", "logprobs"}


@pytest.mark.parametrize("kind, field, number_kind", FIELDS)
def test_hostile_numbers(kind: type, field: str, number_kind: type) -> None:
    for number in HOSTILE:
        check(kind, field, number_kind, number)


@given(
    st.sampled_from(FIELDS),
    st.integers().map(str)
    | st.floats().map(repr)
    | st.decimals().map(str)
    | st.booleans().map(str),
)
def test_any_number(field: tuple[type, str, type], number: str) -> None:
    check(*field, number)


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    for kind in BASE:
        try:
            decode_body(kind, data)  # type: ignore[type-var]
        except RequestError as e:
            assert e.status == 400 and e.code in ("invalid_json", "invalid_utf8", "invalid_value")


def test_over_http_nobody_is_disturbed(served: Served, engine: FakeEngine) -> None:
    """Numbers in every field while another answer streams: it ends as if alone."""
    paths = {ChatRequest: "/v1/chat/completions", CompletionRequest: "/v1/completions"}
    engine.budget = 5
    with httpx.Client(base_url=served.url) as client:
        body = {"prompt": "Hello", "max_tokens": 30, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            for turn, (kind, field, _) in enumerate(FIELDS):
                for number in HOSTILE[turn % 5 :: 5]:
                    data = body_of(kind, field, number)
                    try:
                        decode_body(kind, data)  # type: ignore[type-var]
                    except RequestError as e:
                        answer = client.post(
                            paths[kind], content=data, headers={"content-type": "application/json"}
                        )
                        assert answer.status_code == e.status, (field, number)
            engine.budget = None
            assert stream.read().endswith(b"data: [DONE]\n\n")
    assert len(engine.requests) == 1
