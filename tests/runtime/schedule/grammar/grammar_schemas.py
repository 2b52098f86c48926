"""JSON schemas of every common kind, each with a bounded answer: leaves, and what may hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

LEAVES: tuple[Schema, ...] = (
    {"type": "string", "maxLength": 8},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"},
    {"type": "string", "pattern": "^(foo|bar|baz)-[a-f]{1,4}$"},
    {"type": "string", "pattern": "^\\d{3}-\\d{4}$"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "date"},
    {"type": "string", "enum": ["red", "grün", "青", "🙂", 'a "quoted" one', "back\\slash"]},
    {"const": "Zürich – \n 東京"},
    {"type": "integer", "minimum": -5, "maximum": 120},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "minimum": -273.15, "maximum": 1000},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": [1, "one", None, True, 2.5]},
    {"enum": [{"x": [1, 2]}, [3], "y"]},
    {"type": ["string", "null"], "maxLength": 6},
    {"type": ["integer", "boolean"], "minimum": 0, "maximum": 9},
    {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 99}, {"type": "null"}]},
    {"oneOf": [{"type": "string", "maxLength": 4}, {"type": "boolean"}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]},
    {"type": "string", "const": "only this"},
)


def _object(leaf: Schema) -> Schema:
    named = {"id": {"type": "integer", "minimum": 1, "maximum": 999}, "value": leaf}
    return {"type": "object", "properties": named, "required": ["id", "value"]}


def _optional(leaf: Schema) -> Schema:
    named = {"größe": leaf, "名前": leaf, "c": {"type": "boolean"}}
    return {
        "type": "object", "properties": named, "required": ["c"], "additionalProperties": False,
    }  # fmt: skip


def _nested(leaf: Schema) -> Schema:
    inner = {"type": "object", "properties": {"leaf": leaf}, "required": ["leaf"]}
    for name in ("deeper", "deep"):
        inner = {"type": "object", "properties": {name: inner}, "required": [name]}
    return inner


def _array(leaf: Schema) -> Schema:
    return {"type": "array", "items": leaf, "minItems": 1, "maxItems": 3}


def _tuple(leaf: Schema) -> Schema:
    return {
        "type": "array", "prefixItems": [leaf, {"type": "boolean"}], "items": False, "minItems": 2,
    }  # fmt: skip


def _union(leaf: Schema) -> Schema:
    a = {"type": "object", "properties": {"kind": {"const": "a"}, "v": leaf}}
    b = {"type": "object", "properties": {"kind": {"const": "b"}}}
    return {"anyOf": [a | {"required": ["kind", "v"]}, b | {"required": ["kind"]}]}


def _reference(leaf: Schema) -> Schema:
    named = {"first": {"$ref": "#/$defs/leaf"}, "second": {"$ref": "#/$defs/leaf"}}
    return {
        "$defs": {"leaf": leaf}, "type": "object", "properties": named,
        "required": ["first", "second"], "title": "Pair", "description": "Two of a kind.",
    }  # fmt: skip


def _map(leaf: Schema) -> Schema:
    return {
        "type": "object", "patternProperties": {"^[a-c]$": leaf}, "additionalProperties": False,
        "maxProperties": 2,
    }  # fmt: skip


def _bare(leaf: Schema) -> Schema:
    return leaf


HOLDERS: tuple[Callable[[Schema], Schema], ...] = (
    _bare, _object, _optional, _nested, _array, _tuple, _union, _reference, _map,
)  # fmt: skip

TREE: Schema = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "integer", "minimum": 0, "maximum": 9},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["v", "next"],
        }
    },
    "$ref": "#/$defs/node",
}

ALL: tuple[Schema, ...] = (*(hold(leaf) for hold in HOLDERS for leaf in LEAVES), TREE)
