"""Structured output over HTTP: every word for it, from the OpenAI library, against the real run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field
from stand import Stand

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me of a city."}]


class City(BaseModel):
    name: str = Field(max_length=20)
    population: int = Field(ge=0, le=50_000_000)
    size: Literal["small", "large"]


@pytest.fixture(scope="module")
def client(served: Stand) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as one:
        yield one


def test_the_librarys_own_parsing(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="default", messages=ASK, response_format=City, temperature=0, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, City)


def test_a_stream_is_the_same_json(client: openai.OpenAI) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {
        "name": "city", "strict": True, "schema": City.model_json_schema(),
    }}  # fmt: skip
    chunks = client.chat.completions.create(
        model="default", messages=ASK, response_format=schema, stream=True, max_tokens=200
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    City.model_validate_json(text)


@pytest.mark.parametrize(
    "words,pattern",
    [
        ({"regex": "[0-9]{3}-[0-9]{4}"}, r"\d{3}-\d{4}"),
        ({"ebnf": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"guided_choice": ['a "b"', "c\\d", "ü\n🙂"]}, 'a "b"|c\\\\d|ü\n🙂'),
        ({"guided_regex": "x{3}"}, "xxx"),
        ({"guided_grammar": 'root ::= "g"'}, "g"),
        ({"guided_json": {"enum": [1, 2]}}, "1|2"),
        ({"json_schema": '{"const": "k"}'}, '"k"'),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
        ({"structured_outputs": {"json": {"type": "boolean"}}}, "true|false"),
        ({"structured_outputs": {"regex": "[ab]{2}"}}, "[ab]{2}"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_every_word_for_it(client: openai.OpenAI, words: dict[str, Any], pattern: str) -> None:
    answer = client.completions.create(
        model="default", prompt="Well: ", extra_body=words, max_tokens=40
    )
    assert re.fullmatch(pattern, answer.choices[0].text)
    assert answer.choices[0].finish_reason == "stop"


def test_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=ASK, response_format={"type": "json_object"}, max_tokens=300
    )
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_grammar_is_a_400_before_anything_is_sent(
    client: openai.OpenAI, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(
            model="default", prompt="x", extra_body={"regex": "("}, stream=stream
        )
    assert refused.value.code == "grammar_invalid"
    assert "parenthesis" in refused.value.message
