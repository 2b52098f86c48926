"""JSON schemas before they are compiled: made definite, and asked whether xgrammar holds to them.

xgrammar passes over keywords that it does not know in their place; what is not plainly its own
goes to llguidance, which refuses what it cannot hold to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from appliance.runtime.schedule.grammar import exclusive

DEEPEST = 64
NotExclusive = exclusive.NotExclusive

_NOTES = frozenset(
    {
        "$anchor", "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated",
        "description", "discriminator", "examples", "example", "readOnly", "title", "writeOnly",
    }
)  # fmt: skip
"""Keywords that say nothing of what is valid."""

_BY_TYPE: dict[str, frozenset[str]] = {
    "string": frozenset({"pattern", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
"""What xgrammar holds to in a node of that type. A string that it counts may hold control
characters, which are no JSON."""

_FORMATS = frozenset(
    {
        "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid",
    }
)  # fmt: skip
"""Those that llguidance holds to. xgrammar's are loose (octets such as 003) but for uuid."""

_PLAIN_PATTERN = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-[]{}(),+*? :/@#"
)
"""A pattern of these characters between ^ and $ can match neither a quote nor a backslash."""

_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_ONE = ("items", "additionalProperties", "not", "propertyNames", "contains")


class TooDeep(ValueError):
    """A schema nested past DEEPEST."""


def definite(schema: Any) -> Any:
    """The schema with every object said to be open or closed.

    One that names properties is closed unless it says otherwise; one that names none is open. Parts
    of an allOf are left as they are: they speak of the same object. A format that nobody checks is
    a note, and so is taken out.
    """
    return _definite(schema, 0, whole=True)


def _definite(node: Any, depth: int, whole: bool) -> Any:
    if depth > DEEPEST:
        raise TooDeep(f"the schema is nested more than {DEEPEST} deep")
    if not isinstance(node, dict):
        return node
    out = dict(node)

    def each(child: Any, whole: bool = True) -> Any:
        return _definite(child, depth + 1, whole)

    for key in _LISTS:
        if isinstance(node.get(key), list):
            out[key] = [each(child, key != "allOf") for child in node[key]]
    for key in _MAPS:
        if isinstance(node.get(key), dict):
            out[key] = {name: each(child) for name, child in node[key].items()}
    for key in _ONE:
        if isinstance(node.get(key), dict):
            out[key] = each(node[key])
    if out.get("format") not in _FORMATS:
        out.pop("format", None)
    if out.get("uniqueItems") is False:
        del out["uniqueItems"]
    is_object = out.get("type") == "object" or ("type" not in out and "properties" in out)
    if is_object and whole and not out.keys() & {"additionalProperties", "allOf", "$ref"}:
        names = out.keys() & {"properties", "patternProperties"}
        out["additionalProperties"] = not names
    return out


def is_plain(schema: Any) -> bool:
    """Whether xgrammar holds to all of a definite schema."""
    return all(_is_plain_node(node) for node in _nodes(schema))


def with_any_of(schema: Any) -> Any:
    """The schema as it was given, with anyOf for each oneOf; NotExclusive when that is not the
    same."""
    return exclusive.with_any_of(schema, _mapped)


def without(schema: Any, keywords: set[str]) -> Any:
    """The schema less these keywords wherever they constrain; names of properties stay."""

    def cut(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        kept = {k: v for k, v in node.items() if k not in keywords}
        return _mapped(kept, cut)

    return cut(schema)


def _mapped(node: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    out = dict(node)
    for key in _LISTS:
        if isinstance(node.get(key), list):
            out[key] = [change(child) for child in node[key]]
    for key in _MAPS:
        if isinstance(node.get(key), dict):
            out[key] = {name: change(child) for name, child in node[key].items()}
    for key in _ONE:
        if isinstance(node.get(key), dict):
            out[key] = change(node[key])
    return out


def _nodes(schema: Any) -> Iterator[Any]:
    pending = [schema]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, dict):
            for key in _LISTS:
                if isinstance(node.get(key), list):
                    pending += node[key]
            for key in _MAPS:
                if isinstance(node.get(key), dict):
                    pending += node[key].values()
            pending += [node[key] for key in _ONE if isinstance(node.get(key), dict)]


def _is_plain_node(node: Any) -> bool:
    if not isinstance(node, dict):
        return True
    keys = {k for k in node if k not in _NOTES and not k.startswith("x-")}
    if keys <= {"$ref"} or keys in ({"anyOf"}, {"const"}, {"enum"}):
        return True
    types = node.get("type", "object" if "properties" in node else [])
    types = [types] if isinstance(types, str) else types
    if not types or not all(t in _BY_TYPE for t in types):
        return False
    keys -= {"type"}
    if keys in ({"const"}, {"enum"}):
        values = node["enum"] if "enum" in node else [node["const"]]
        return all(any(_is_of(v, t) for t in types) for v in values)
    if not keys <= frozenset().union(*(_BY_TYPE[t] for t in types)):
        return False
    return _is_plain_string(node, keys) and _is_plain_object(node)


def _is_plain_string(node: dict[str, Any], keys: set[str]) -> bool:
    if "pattern" not in keys:
        return node.get("format") in (None, "uuid")
    pattern = node["pattern"]
    if "format" in keys or not (
        isinstance(pattern, str) and pattern[:1] == "^" and pattern[-1:] == "$"
    ):
        return False
    return set(pattern[1:-1]) <= _PLAIN_PATTERN


def _is_plain_object(node: dict[str, Any]) -> bool:
    named = node.get("properties") or {}
    if not set(node.get("required") or ()) <= set(named):
        return False
    # An open object could name one of its own properties again, with another type.
    return not named or node.get("additionalProperties", False) is False


def _is_of(value: Any, type: str) -> bool:
    match type:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return type == "number" or float(value).is_integer()
