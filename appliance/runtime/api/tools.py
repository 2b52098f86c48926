"""Tools of a chat: what a request says of them, the grammar that forces a call, calls as they are
written in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from appliance.errors import RequestError
from appliance.runtime.wire.request import Grammar
from appliance.runtime.wire.text import CallDelta

MAX_NAME = 128
MAX_TOOL_BYTES = 256 << 10
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/")


class ToolUse(NamedTuple):
    """tools: those that the template shows. calls: as in TextRequest. grammar: forces calls."""

    tools: list[dict[str, Any]] | None = None
    calls: Literal["none", "model", "forced"] = "none"
    grammar: Grammar | None = None


def read_tools(
    tools: Sequence[dict[str, Any]] | None, choice: str | dict[str, Any] | None, parallel: bool
) -> ToolUse:
    """RequestError names the tool or the choice that is wrong."""
    given = list(tools or ())
    names = [_check(tool, i) for i, tool in enumerate(given)]
    wanted = _chosen(choice)
    if wanted is None:
        return ToolUse()
    if wanted == "auto":
        return ToolUse(given, "model") if given else ToolUse()
    if not given:
        raise RequestError(
            "tool_choice asks for a tool call, and the request has no tools.", param="tool_choice"
        )
    forced = given
    if wanted.startswith("="):
        forced = [t for t, name in zip(given, names, strict=True) if name == wanted[1:]]
        parallel = False
    if not forced:
        raise RequestError(
            f"tool_choice names the function {wanted[1:][:80]!r}, which is not in tools: "
            f"{', '.join(names)[:400]}.",
            param="tool_choice",
        )
    try:
        grammar = _calls_grammar(forced, parallel)
    except RecursionError as e:
        raise RequestError("a schema in tools is nested too deeply.", param="tools") from e
    return ToolUse(given, "forced", grammar)


def _check(tool: dict[str, Any], i: int) -> str:
    """The tool's name."""

    def wrong(what: str) -> RequestError:
        return RequestError(f"tools[{i}]{what}", param="tools")

    if tool.get("type", "function") != "function":
        raise wrong(f".type is {str(tool['type'])[:40]!r}; only 'function' can be called.")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise wrong(".function must be an object.")
    name = function.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not _NAME.issuperset(name):
        raise wrong(
            f".function.name must have 1 to {MAX_NAME} letters, digits, and characters of _-.:/."
        )
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise wrong(".function.parameters must be a JSON schema, which is an object.")
    size = len(msgspec.json.encode(tool))
    if size > MAX_TOOL_BYTES:
        raise wrong(f" has {size:,} bytes; at most {MAX_TOOL_BYTES:,} are taken.")
    return name


def _chosen(choice: str | dict[str, Any] | None) -> str | None:
    """auto, required, `=` and a name, or None for none."""
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        if choice.get("type") == "function" and isinstance(name, str) and name:
            return f"={name}"
        choice = str(choice.get("type"))
    if choice in (None, "auto"):
        return "auto"
    if choice == "none":
        return None
    if choice in ("required", "any"):
        return "required"
    raise RequestError(
        f"tool_choice is {str(choice)[:40]!r}; it can be 'auto', 'none', 'required', or "
        '{"type": "function", "function": {"name": …}}.',
        param="tool_choice",
    )


def _calls_grammar(tools: Sequence[dict[str, Any]], parallel: bool) -> Grammar:
    """A list of calls; what a tool's schema refers to stays its own."""
    parts: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        function = tool["function"]
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        parts[f"t{i}"] = _moved({"type": "object", **schema}, f"#/$defs/t{i}")
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": {"$ref": f"#/$defs/t{i}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema = {
        "type": "array",
        "items": calls[0] if len(calls) == 1 else {"anyOf": calls},
        "minItems": 1,
        "$defs": parts,
    }
    if not parallel:
        schema["maxItems"] = 1
    return Grammar("json_schema", msgspec.json.encode(schema).decode())


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


def call_pieces(calls: Iterable[CallDelta]) -> list[dict[str, Any]]:
    """As a stream shows them: who is called on the first piece only."""
    out: list[dict[str, Any]] = []
    for call in calls:
        function: dict[str, Any] = {"arguments": call.arguments}
        piece: dict[str, Any] = {"index": call.index, "function": function}
        if call.name:
            piece |= {"id": call.id, "type": "function"}
            piece["function"] = {"name": call.name, **function}
        out.append(piece)
    return out


def whole_calls(calls: Iterable[CallDelta]) -> list[dict[str, Any]]:
    """As a message shows them. calls: all the deltas of one answer."""
    who: list[CallDelta] = []
    arguments: list[list[str]] = []
    for call in calls:
        if call.name:
            who.append(call)
            arguments.append([])
        arguments[call.index].append(call.arguments)
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": "".join(texts)},
        }
        for call, texts in zip(who, arguments, strict=True)
    ]
