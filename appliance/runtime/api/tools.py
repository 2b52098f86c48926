"""Tools of a chat: what a request says of them, and calls in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from appliance.errors import RequestError
from appliance.runtime.wire.text import CallDelta

MAX_NAME = 128
MAX_TOOL_BYTES = 256 << 10
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/")


class ToolUse(NamedTuple):
    """tools: those that the template shows. calls, may_call: as in TextRequest. single: one call
    of the function that was named."""

    tools: list[dict[str, Any]] | None = None
    calls: Literal["none", "model", "forced"] = "none"
    may_call: tuple[str, ...] = ()
    single: bool = False


def read_tools(
    tools: Sequence[dict[str, Any]] | None, choice: str | dict[str, Any] | None
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
    named = names
    if wanted.startswith("="):
        named = [name for name in names if name == wanted[1:]]
    if not named:
        raise RequestError(
            f"tool_choice names the function {wanted[1:][:80]!r}, which is not in tools: "
            f"{', '.join(names)[:400]}.",
            param="tool_choice",
        )
    return ToolUse(given, "forced", tuple(named), wanted.startswith("="))


def read_functions(
    functions: Sequence[dict[str, Any]], choice: str | dict[str, Any] | None
) -> ToolUse:
    """The same in the words that the API had before tools: one call at most."""
    wanted = choice
    if isinstance(choice, dict):
        wanted = {"type": "function", "function": {"name": choice.get("name")}}
    elif choice not in (None, "auto", "none"):
        raise RequestError(
            f"function_call is {choice[:40]!r}; it can be 'auto', 'none' or {{\"name\": …}}.",
            param="function_call",
        )
    try:
        use = read_tools([{"type": "function", "function": f} for f in functions], wanted)
    except RequestError as e:
        if e.param == "tools":
            message = e.message.replace("tools[", "functions[").replace("].function", "]")
            raise RequestError(message, param="functions") from e
        message = e.message.replace("tool_choice", "function_call").replace("tools", "functions")
        message = message.replace("a tool call", "a call")
        raise RequestError(message, param="function_call") from e
    return use._replace(single=True)


def function_call(calls: Iterable[CallDelta]) -> dict[str, Any]:
    """The only call of an answer, or a piece of it, in those words."""
    pieces = list(calls)
    name = "".join(piece.name for piece in pieces)
    arguments = "".join(piece.arguments for piece in pieces)
    return {"name": name, "arguments": arguments} if name else {"arguments": arguments}


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
    if parameters and parameters.get("type", "object") != "object":
        raise wrong(".function.parameters must have the type 'object'.")
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
