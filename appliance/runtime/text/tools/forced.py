"""The grammars of tool calls: of an answer that must be calls, in the model's own form where that
is JSON between marks, else as a JSON list; and of calls that hold to their schemas if any come."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from appliance.errors import RequestError
from appliance.runtime.wire.request import Grammar

MAX_SOURCE = 256 << 10
"""Bytes of a grammar."""


class Tagged(NamedTuple):
    """What stands before a call's name, between its name and its arguments, and behind those."""

    before: str
    between: str
    behind: str
    apart: str
    """Between two calls."""
    trigger: str
    """What of `before` no other text begins with."""


TAGGED: dict[str, Tagged] = {
    "hermes": Tagged(
        '<tool_call>\n{"name": ', ', "arguments": ', "}\n</tool_call>", "\n", "<tool_call>"
    ),
}


def calls_grammar(
    form: str, tools: Sequence[dict[str, Any]], names: Collection[str], parallel: bool
) -> Grammar:
    """tools: OpenAI's, checked. names: those that may be called. RequestError when it is too large
    or nested too deeply."""
    functions = [t["function"] for t in tools if t["function"]["name"] in names]
    called = [f["name"] for f in functions]
    try:
        schemas = [_schema(f) for f in functions]
        if form in TAGGED:
            grammar = _tags(TAGGED[form], called, schemas, parallel)
        else:
            grammar = _list(called, schemas, parallel)
    except RecursionError as e:
        raise _too_deep() from e
    return _within_limits(grammar)


def strict_grammar(form: str, tools: Sequence[dict[str, Any]], parallel: bool) -> Grammar | None:
    """Of an answer that may call: where it does, a tool that is `strict` gets what its schema says.

    None when no tool is, or the form cannot be held. RequestError as of calls_grammar.
    """
    functions = [t["function"] for t in tools]
    if form not in TAGGED or not any(f.get("strict") is True for f in functions):
        return None
    tagged = TAGGED[form]
    schemas = [_schema(f) if f.get("strict") is True else {"type": "object"} for f in functions]
    shape = {
        "type": "triggered_tags",
        "triggers": [tagged.trigger],
        "tags": _tag_list(tagged, [f["name"] for f in functions], schemas),
        "stop_after_first": not parallel,
    }
    try:
        source = json.dumps({"type": "structural_tag", "format": shape})
    except RecursionError as e:
        raise _too_deep() from e
    return _within_limits(Grammar("structural_tag", source))


def _schema(function: dict[str, Any]) -> dict[str, Any]:
    """What a call's arguments are written under. A tool that is not strict asks for no more than an
    attempt: where it says oneOf, anyOf is held."""
    schema = {"type": "object", "properties": {}} | (function.get("parameters") or {})
    return schema if function.get("strict") is True else _loose(schema)


def _loose(node: Any) -> Any:
    if isinstance(node, list):
        return [_loose(child) for child in node]
    if not isinstance(node, dict):
        return node
    return {
        "anyOf" if key == "oneOf" and isinstance(child, list) and "anyOf" not in node else key:
            _loose(child)
        for key, child in node.items()
    }  # fmt: skip


def _too_deep() -> RequestError:
    return RequestError("a schema in tools is nested too deeply.", param="tools")


def _within_limits(grammar: Grammar) -> Grammar:
    size = len(grammar.source.encode())
    if size > MAX_SOURCE:
        raise RequestError(
            f"a call of any of these tools is a grammar of {size:,} bytes; at most {MAX_SOURCE:,} "
            "are taken. Name the function in tool_choice, or give fewer tools.",
            code="grammar_too_complex",
            param="tools",
        )
    return grammar


def _tag_list(form: Tagged, names: list[str], schemas: list[Any]) -> list[dict[str, Any]]:
    # without a bound a model that is forced where it has nothing to say writes blanks for ever
    return [
        {
            "type": "tag",
            "begin": form.before + json.dumps(name) + form.between,
            "content": {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1},
            "end": form.behind,
        }
        for name, schema in zip(names, schemas, strict=True)
    ]


def _tags(form: Tagged, names: list[str], schemas: list[Any], parallel: bool) -> Grammar:
    shape = {
        "type": "tags_with_separator",
        "tags": _tag_list(form, names, schemas),
        "separator": form.apart,
        "at_least_one": True,
        "stop_after_first": not parallel,
    }
    return Grammar("structural_tag", json.dumps({"type": "structural_tag", "format": shape}))


def _list(names: list[str], schemas: list[Any], parallel: bool) -> Grammar:
    """What a tool's schema refers to stays its own."""
    parts = {f"t{i}": _moved(schema, f"#/$defs/t{i}") for i, schema in enumerate(schemas)}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/t{i}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for i, name in enumerate(names)
    ]
    whole: dict[str, Any] = {
        "type": "array",
        "items": calls[0] if len(calls) == 1 else {"anyOf": calls},
        "minItems": 1,
        "$defs": parts,
    }
    if not parallel:
        whole["maxItems"] = 1
    return Grammar("json_schema", json.dumps(whole))


def _moved(node: Any, to: str) -> Any:
    """The schema with its references to itself written for another place."""
    if isinstance(node, list):
        return [_moved(child, to) for child in node]
    if not isinstance(node, dict):
        return node
    return {
        key: to + child[1:]
        if key == "$ref" and isinstance(child, str) and (child == "#" or child.startswith("#/"))
        else _moved(child, to)
        for key, child in node.items()
    }
