"""oneOf in JSON schemas: where no value can be valid by two of its branches, it means anyOf.

Neither library holds to more than that. It is looked for in the schema as it was given: in one
whose objects were closed for writing, more would seem exclusive than a validator finds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

_DEEPEST = 12
"""Steps into parts and references that a proof may take."""

_TYPES = frozenset({"string", "integer", "number", "array", "object", "boolean", "null"})


class NotExclusive(ValueError):
    """A oneOf whose branches are not shown to exclude each other."""


def with_any_of(schema: Any, children: Callable[[Any, Callable[[Any], Any]], Any]) -> Any:
    """The schema with anyOf for each oneOf. NotExclusive when one of them means more.

    children: (node, change) -> the node with `change` made to the schemas in it.
    """
    proof = _Proof(schema)

    def change(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        out = children(node, change)
        branches = node.get("oneOf")
        if isinstance(branches, list):
            if not proof.excludes(branches):
                raise NotExclusive(
                    "a oneOf has branches that the same value may be valid by. Say anyOf, or tell "
                    "them apart: by type, or by a required property with another const in each"
                )
            given = {"anyOf": out.pop("oneOf")}
            if "anyOf" in out:
                given = {"allOf": [*out.get("allOf", ()), given]}
            out |= given
        return out

    return change(schema)


class _Proof:
    """Says of two schemas that no value is valid by both; False where it cannot tell.

    root: the whole schema, for references.
    """

    def __init__(self, root: Any) -> None:
        self._root = root

    def excludes(self, branches: list[Any]) -> bool:
        return all(
            self._apart(one, other, 0)
            for i, one in enumerate(branches)
            for other in branches[i + 1 :]
        )

    def _apart(self, one: Any, other: Any, depth: int) -> bool:
        if one is False or other is False:
            return True
        if depth > _DEEPEST or not isinstance(one, dict) or not isinstance(other, dict):
            return False
        return (
            self._apart_by_part(one, other, depth + 1)
            or self._apart_by_part(other, one, depth + 1)
            or _apart_by_value(one, other)
            or self._apart_by_property(one, other, depth + 1)
        )

    def _apart_by_part(self, one: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """`one` is no more than what it refers to, each of its allOf, and all of its anyOf."""
        if isinstance(one.get("$ref"), str):
            target = self._target(one["$ref"])
            if target is not None and self._apart(target, other, depth):
                return True
        parts = one.get("allOf")
        if isinstance(parts, list) and any(self._apart(p, other, depth) for p in parts):
            return True
        for key in ("anyOf", "oneOf"):
            parts = one.get(key)
            if isinstance(parts, list) and parts:
                apart = all(self._apart(p, other, depth) for p in parts)
                if apart:
                    return True
        return False

    def _apart_by_property(self, one: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        """Both are of objects, and a property that one must have is another in the other, or may
        not be there."""
        if not (_is_object(one) and _is_object(other)):
            return False
        mine, theirs = _properties(one), _properties(other)
        for name in _required(one) | _required(other):
            if name in mine and name in theirs:
                if self._apart(mine[name], theirs[name], depth):
                    return True
            elif any(
                name in _required(a) and _shuts_out(b, name)
                for a, b in ((one, other), (other, one))
            ):
                return True
        return False

    def _target(self, ref: str) -> Any:
        """None when it is not in this schema."""
        if not ref.startswith("#"):
            return None
        node = self._root
        for step in ref[1:].split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, dict) or key not in node:
                return None
            node = node[key]
        return node


def _apart_by_value(one: dict[str, Any], other: dict[str, Any]) -> bool:
    values, others = _values(one), _values(other)
    if values is not None and others is not None:
        return values.isdisjoint(others)
    kinds, other_kinds = _kinds(one), _kinds(other)
    if kinds is None or other_kinds is None:
        return False
    if kinds == other_kinds == {"number"}:
        return _above(one, other) or _above(other, one)
    return kinds.isdisjoint(other_kinds)


def _above(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the least number of `one` is more than the most of `other`."""
    least, most = one.get("minimum"), other.get("maximum")
    over, under = one.get("exclusiveMinimum"), other.get("exclusiveMaximum")
    pairs = ((least, most, False), (over, most, True), (least, under, True), (over, under, True))
    return any(
        isinstance(a, int | float)
        and isinstance(b, int | float)
        and (a > b or (touching and a == b))
        for a, b, touching in pairs
    )


def _values(node: dict[str, Any]) -> set[str] | None:
    """The values that const or enum allow, written so that equal ones are alike."""
    if "const" in node:
        return {_written(node["const"])}
    if isinstance(node.get("enum"), list):
        return {_written(value) for value in node["enum"]}
    return None


def _written(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    """1.0 is 1 in JSON schemas."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value


def _kinds(node: dict[str, Any]) -> set[str] | None:
    """The types that a node allows; an integer is a number. None: any."""
    values = [node["const"]] if "const" in node else node.get("enum")
    if isinstance(values, list):
        return {_kind(value) for value in values}
    types = node.get("type")
    given = [types] if isinstance(types, str) else types
    if not isinstance(given, list) or not _TYPES.issuperset(map(str, given)):
        return None
    return {"number" if kind == "integer" else str(kind) for kind in given}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    kinds = {str: "string", int: "number", float: "number", list: "array", dict: "object"}
    return kinds[type(value)]


def _is_object(node: dict[str, Any]) -> bool:
    return node.get("type") == "object"


def _properties(node: dict[str, Any]) -> dict[str, Any]:
    found = node.get("properties")
    return found if isinstance(found, dict) else {}


def _required(node: dict[str, Any]) -> set[str]:
    found = node.get("required")
    return {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()


def _shuts_out(node: dict[str, Any], name: str) -> bool:
    """Whether an object by this node cannot have the property; only what is said counts here."""
    closed = node.get("additionalProperties") is False and "patternProperties" not in node
    return closed and name not in _properties(node)
