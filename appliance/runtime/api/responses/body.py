"""The body of /v1/responses, and the same wishes as a chat request.

Hosted tools (web_search and its like) are left out: nothing here could run them.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from appliance.errors import RequestError
from appliance.runtime.api.schema import ChatRequest, Count, convert_body

_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal")
_ROLES = ("user", "assistant", "system", "developer")
LOGPROBS = "message.output_text.logprobs"


class ResponseReasoning(Struct):
    effort: str | None = None
    summary: str | None = None


class TextOptions(Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(Struct, kw_only=True):
    input: str | Annotated[list[dict[str, Any]], Meta(max_length=4096)] = ""
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    conversation: Any = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=512)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ResponseReasoning | None = None
    text: TextOptions | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def shows_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    def functions(self) -> list[dict[str, Any]]:
        return [tool for tool in self.tools or () if tool.get("type") == "function"]

    def items(self) -> list[dict[str, Any]]:
        """The input as a list of items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return self.input

    def refuse_unsupported(self) -> None:
        for name, given in (("background", self.background), ("conversation", self.conversation)):
            if given:
                raise RequestError(
                    f"{name} is not supported; leave it out and send previous_response_id for a "
                    "conversation.",
                    code="unsupported_value",
                    param=name,
                )

    def as_chat(self, before: list[dict[str, Any]], new: list[dict[str, Any]]) -> ChatRequest:
        """before: messages of earlier turns. new: those of `messages_of(self.items())`."""
        messages = [*before, *new]
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        if not messages:
            raise RequestError("input is empty.", param="input")
        out: dict[str, Any] = {
            "messages": messages,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "logprobs": self.shows_logprobs,
            "top_logprobs": self.top_logprobs,
            "chat_template_kwargs": self.chat_template_kwargs,
            "parallel_tool_calls": self.parallel_tool_calls,
            "tool_choice": self._choice(),
            "tools": [_tool(tool) for tool in self.functions()] or None,
        }
        if self.reasoning is not None and self.reasoning.effort is not None:
            out["reasoning_effort"] = self.reasoning.effort
        if self.text is not None and self.text.format is not None:
            out["response_format"] = _format(self.text.format)
        return convert_body(ChatRequest, out)

    def _choice(self) -> str | dict[str, Any] | None:
        choice = self.tool_choice
        if not isinstance(choice, dict):
            return choice
        if choice.get("type") == "function":
            return {"type": "function", "function": {"name": str(choice.get("name"))}}
        raise RequestError(
            f"tool_choice of type {str(choice.get('type'))[:40]!r} is not supported; a function "
            "can be named.",
            code="unsupported_value",
            param="tool_choice",
        )


def _format(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("type") != "json_schema":
        return given
    inner = {k: v for k, v in given.items() if k in ("name", "schema", "strict", "description")}
    return {"type": "json_schema", "json_schema": inner}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise RequestError("a function in tools has no name.", param="tools")
    known = ("name", "description", "parameters", "strict")
    function = {k: tool[k] for k in known if tool.get(k) is not None}
    return {"type": "function", "function": function}


def messages_of(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Input items as chat messages. What the assistant thought, said and called in one turn
    becomes one message."""
    out: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        kind = item.get("type") or "message"
        if kind == "message":
            _take_message(out, item, i)
        elif kind == "function_call":
            _assistant(out).setdefault("tool_calls", []).append(_call(item, i))
        elif kind == "function_call_output":
            out.append(
                {
                    "role": "tool",
                    "tool_call_id": str(item.get("call_id") or ""),
                    "content": _text(item.get("output"), f"input[{i}].output"),
                }
            )
        elif kind == "reasoning":
            content = item.get("content") or item.get("summary") or ""
            thoughts = _text(content, f"input[{i}].content")
            if thoughts:
                _assistant(out, fresh=True)["reasoning_content"] = thoughts
        else:
            raise RequestError(
                f"input[{i}] is of type {str(kind)[:40]!r}; messages, function calls, their "
                "outputs and reasoning are taken.",
                code="unsupported_content",
                param="input",
            )
    return out


def _assistant(out: list[dict[str, Any]], fresh: bool = False) -> dict[str, Any]:
    """The assistant's message at the end, made when there is none."""
    if fresh or not out or out[-1]["role"] != "assistant":
        out.append({"role": "assistant", "content": ""})
    return out[-1]


def _take_message(out: list[dict[str, Any]], item: dict[str, Any], i: int) -> None:
    role = item.get("role")
    if role not in _ROLES:
        raise RequestError(
            f"input[{i}].role is {str(role)[:40]!r}; it must be one of {', '.join(_ROLES)}.",
            param="input",
        )
    text = _text(item.get("content"), f"input[{i}].content")
    last = out[-1] if out else {}
    if role == "assistant" and last.get("reasoning_content") and not last["content"]:
        last["content"] = text
    else:
        out.append({"role": role, "content": text})


def _call(item: dict[str, Any], i: int) -> dict[str, Any]:
    name, arguments = item.get("name"), item.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise RequestError(
            f"input[{i}] is a function call without name or arguments.", param="input"
        )
    function = {"name": name, "arguments": arguments}
    return {"id": str(item.get("call_id") or ""), "type": "function", "function": function}


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a text or a list of parts.", param="input")
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise RequestError(
                f"{where} has a part of type {str(kind)[:40]!r}; this model takes text only.",
                code="unsupported_content",
                param="input",
            )
        texts.append(text)
    return "\n".join(texts)


def listed(items: list[dict[str, Any]], id: str) -> list[dict[str, Any]]:
    """Items as /input_items shows them: with an id, content in parts."""
    out: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        shown = {"type": "message", "id": f"item_{id[-24:]}{i}", **item}
        if shown["type"] == "message" and isinstance(shown.get("content"), str):
            assistant = shown.get("role") == "assistant"
            part: dict[str, Any] = {"type": "input_text", "text": shown["content"]}
            if assistant:
                part = {"type": "output_text", "text": shown["content"], "annotations": []}
                shown.setdefault("status", "completed")
            shown["content"] = [part]
        out.append(shown)
    return out


def as_plain(options: Struct | None) -> dict[str, Any]:
    return {} if options is None else msgspec.structs.asdict(options)
