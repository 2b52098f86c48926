"""oneOf: what is shown to be exclusive never has a value by two branches; the rest is refused."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.runtime.schedule.grammar import schema as schemas
from appliance.runtime.schedule.grammar.compile import Libraries, Refused, Words
from appliance.runtime.wire.request import Grammar


def tagged(value: Any, *, closed: bool = False, **more: Any) -> dict[str, Any]:
    node = {"type": "object", "properties": {"kind": {"const": value}}, "required": ["kind"]}
    return {**node, **({"additionalProperties": False} if closed else {}), **more}


REFERRED = {
    "$defs": {"cat": tagged("cat"), "dog": tagged("dog")},
    "type": "object",
    "properties": {
        "pet": {"discriminator": {"propertyName": "kind"},
                "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}]},
    },
    "required": ["pet"],
}  # fmt: skip

SHOWN = [
    {"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
    {"oneOf": [{"const": 1}, {"const": 2}, {"enum": [3, "1", True]}]},
    {"oneOf": [{"const": 5}, {"type": ["string", "null"]}]},
    {"oneOf": [tagged("a"), tagged("b"), tagged(3)]},
    {"oneOf": [{"allOf": [tagged("a")]}, {"anyOf": [tagged("b"), tagged("c")]}]},
    {"oneOf": [
        {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"],
         "additionalProperties": False},
        {"type": "object", "properties": {"y": {"type": "integer"}},
         "additionalProperties": False},
    ]},
    {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "number", "exclusiveMinimum": 3}]},
    {"anyOf": [{"type": "string"}, {"type": "null"}], "oneOf": [{"const": "a"}, {"const": None}]},
    REFERRED,
]  # fmt: skip

NOT_SHOWN = [
    {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]},
    {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    {"oneOf": [{"const": 1}, {"enum": [1.0, 2]}]},
    {"oneOf": [tagged("a"), {"type": "object", "properties": {"x": {"type": "string"}}}]},
    {"oneOf": [tagged("a", required=[]), tagged("b", required=[])]},
    {"oneOf": [True, {"type": "string"}]},
    # without words on other properties, an object of one may be one of the other
    {"oneOf": [
        {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
        {"type": "object", "properties": {"y": {"type": "integer"}}, "required": ["y"]},
    ]},
]  # fmt: skip


def has_one_of(schema: Any) -> bool:
    try:
        told = json.dumps(schemas.with_any_of(schema))
    except schemas.NotExclusive:
        return True
    assert '"oneOf"' not in told
    return False


@pytest.mark.parametrize("schema", SHOWN)
def test_shown(schema: Any) -> None:
    before = json.dumps(schema)
    assert not has_one_of(schema)
    assert json.dumps(schema) == before


@pytest.mark.parametrize("schema", NOT_SHOWN)
def test_not_shown(schema: Any) -> None:
    assert has_one_of(schema)


def test_a_reference_to_itself_ends() -> None:
    loop = {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"$ref": "elsewhere"}],
    }
    assert has_one_of(loop)


VALUES = st.sampled_from([None, True, 0, 1, 1.0, 2, 1.5, "a", "b", [], [1]])
LEAVES = st.one_of(
    st.sampled_from(["string", "integer", "number", "null", "boolean", "array", "object"]).map(
        lambda kind: {"type": kind}
    ),
    VALUES.map(lambda value: {"const": value}),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    st.booleans(),
)


def objects(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    parts = st.lists(children, min_size=1, max_size=2)
    one = st.fixed_dictionaries(
        {
            "type": st.just("object"),
            "properties": st.dictionaries(st.sampled_from("xy"), children, max_size=2),
            "required": st.lists(st.sampled_from("xy"), max_size=2, unique=True),
        },
        optional={"additionalProperties": st.booleans()},
    )
    return st.one_of(one, parts.map(lambda p: {"anyOf": p}), parts.map(lambda p: {"allOf": p}))


SCHEMAS = st.recursive(LEAVES, objects, max_leaves=4)
INSTANCES = st.one_of(VALUES, st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=2))


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, SCHEMAS, st.lists(INSTANCES, min_size=12, max_size=12))
def test_no_value_is_valid_by_two(one: Any, other: Any, values: list[Any]) -> None:
    if has_one_of({"oneOf": [one, other]}):
        return
    first = jsonschema.Draft202012Validator(one)
    second = jsonschema.Draft202012Validator(other)
    assert not [v for v in values if first.is_valid(v) and second.is_valid(v)]


@pytest.fixture(scope="module")
def libraries() -> Libraries:
    tokens = [bytes([i]) for i in range(256)]
    return Libraries(Words(tokens, lambda text: list(text.encode())), 256)


def compile_it(libraries: Libraries, schema: Any, strict: bool) -> str:
    return libraries.compile(Grammar("json_schema", json.dumps(schema), strict)).library


@pytest.mark.parametrize("strict", [True, False])
def test_libraries_are_given_what_they_hold_to(libraries: Libraries, strict: bool) -> None:
    for schema in SHOWN:
        compile_it(libraries, schema, strict)
    assert compile_it(libraries, REFERRED, strict) == "xgrammar"
    for schema in NOT_SHOWN:
        with pytest.raises(Refused, match="oneOf"):
            compile_it(libraries, schema, strict)


def test_schemas_within_tags_are_held_to_as_well(libraries: Libraries) -> None:
    def tag(schema: Any) -> Grammar:
        content = {"type": "json_schema", "json_schema": schema}
        form = {"type": "tag", "begin": "<a>", "content": content, "end": "</a>"}
        return Grammar("structural_tag", json.dumps({"type": "structural_tag", "format": form}))

    assert libraries.compile(tag(REFERRED)).library == "xgrammar"
    with pytest.raises(Refused, match="oneOf"):
        libraries.compile(tag(NOT_SHOWN[0]))
