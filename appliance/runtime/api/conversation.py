"""Messages of a chat as clients send them -> as templates know them: texts, and calls of tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.errors import RequestError

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def plain_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose content is text: parts of type text are joined. RequestError names the
    message that is wrong."""
    out: list[dict[str, Any]] = []
    for i, message in enumerate(with_tool_calls(messages)):
        role = message.get("role")
        if role not in _ROLES:
            raise RequestError(
                f"messages[{i}].role is {str(role)[:40]!r}; it must be one of {', '.join(_ROLES)}.",
                param="messages",
            )
        out.append({**message, "content": _plain_content(message.get("content"), i)})
    return out


def with_tool_calls(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Messages that speak of functions as the API once did, in the words of tools, which is what
    templates know. RequestError names the message that is wrong."""
    id = ""
    for i, message in enumerate(messages):
        call = message.get("function_call")
        if message.get("role") == "function":
            rest = {k: v for k, v in message.items() if k != "role"}
            yield {"role": "tool", "tool_call_id": id or f"call{i:05d}", **rest}
        elif call is None or message.get("role") != "assistant" or message.get("tool_calls"):
            yield message
        else:
            if not isinstance(call, dict) or not isinstance(call.get("name"), str):
                raise RequestError(
                    f"messages[{i}].function_call must be an object with name and arguments.",
                    param="messages",
                )
            id = f"call{i:05d}"
            rest = {k: v for k, v in message.items() if k != "function_call"}
            yield {**rest, "tool_calls": [{"id": id, "type": "function", "function": call}]}


def _plain_content(content: Any, i: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(
            f"messages[{i}].content must be a text or a list of parts.", param="messages"
        )
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                f"messages[{i}].content has a part of type {str(kind)[:40]!r}; this model takes "
                "text only.",
                code="unsupported_content",
                param="messages",
            )
        texts.append(part["text"])
    return "\n".join(texts)
