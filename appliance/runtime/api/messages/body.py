"""The body of /v1/messages, and the same wishes as a chat request.

Fields and tools of a kind that a text model cannot honour are ignored, as Anthropic's clients send
many; content that cannot be read (an image, say) is refused.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from appliance.errors import RequestError
from appliance.runtime.api.schema import ChatRequest, Count, Share, convert_body

_BILLING = re.compile(r"^x-anthropic-billing-header:[^\n]*\n?")
"""A block that some clients put first, with a number that is new in each request: kept, it would
keep every prompt from the prefix cache."""

_BUDGET = re.compile(r"\n*<total_tokens>\d{1,12} tokens left</total_tokens>")
"""A note that some clients put behind the system prompt, another one with each request. The model
is not told of it: in front of all messages it would keep them from the prefix cache."""

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_ROLES = ("user", "assistant", "system")


class Thinking(Struct):
    type: str
    budget_tokens: int | None = None


class OutputConfig(Struct):
    effort: str | None = None
    format: dict[str, Any] | None = None


class ToolChoice(Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Conversation(Struct, kw_only=True):
    """What a message is made of; all that counting needs."""

    model: str | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=4096)]
    system: str | list[dict[str, Any]] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=512)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    @property
    def thinks(self) -> bool:
        return self.thinking is not None and self.thinking.type in ("enabled", "adaptive")

    def conversation(self) -> dict[str, Any]:
        """Fields of a ChatRequest."""
        messages = _system(self.system)
        for i, message in enumerate(self.messages):
            messages += _messages(message, i)
        last = messages[-1]
        goes_on = last["role"] == "assistant" and "tool_calls" not in last
        out: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "chat_template_kwargs": {"enable_thinking": self.thinks},
            "continue_final_message": goes_on,
            "add_generation_prompt": not goes_on,
        }
        tools = [_tool(tool) for tool in self.tools or () if "input_schema" in tool]
        if tools:
            out["tools"] = tools
        if self.tool_choice is not None:
            known = {tool["function"]["name"] for tool in tools}
            out["tool_choice"] = self._choice(self.tool_choice, known)
            out["parallel_tool_calls"] = not self.tool_choice.disable_parallel_tool_use
        return out

    def _choice(self, choice: ToolChoice, known: set[str]) -> str | dict[str, Any]:
        if choice.type == "tool":
            if choice.name not in known:
                raise RequestError(
                    f"tool_choice names the tool {str(choice.name)[:80]!r}, which is not in tools.",
                    param="tool_choice",
                )
            return {"type": "function", "function": {"name": choice.name}}
        if choice.type not in _CHOICES:
            raise RequestError(
                f"tool_choice.type is {choice.type[:40]!r}; it must be auto, any, tool or none.",
                param="tool_choice",
            )
        return _CHOICES[choice.type]


class CountRequest(_Conversation, kw_only=True):
    def as_chat(self) -> ChatRequest:
        return convert_body(ChatRequest, self.conversation())


class MessagesRequest(_Conversation, kw_only=True):
    max_tokens: Count
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None

    def as_chat(self) -> ChatRequest:
        """max_tokens is left out: it is a wish here, and what the context leaves is the limit."""
        out = self.conversation()
        out |= {
            "stream": self.stream,
            "temperature": self.temperature,
            "top_p": self.top_p or None,
            "top_k": self.top_k,
            "stop": self.stop_sequences,
        }
        config = self.output_config
        if config is not None and config.effort is not None:
            out["reasoning_effort"] = config.effort
        if config is not None and config.format is not None:
            out["response_format"] = {
                "type": config.format.get("type", "json_schema"),
                "json_schema": {"name": "output", "schema": config.format.get("schema", {})},
            }
        return convert_body(ChatRequest, out)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise RequestError("a tool has no name.", param="tools")
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": str(tool.get("description") or ""),
            "parameters": tool["input_schema"],
        },
    }


def _system(system: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    blocks = [{"type": "text", "text": system}] if isinstance(system, str) else system or []
    texts = [_stable(_text(block, "system")) for block in blocks]
    text = "\n".join(t for t in texts if t)
    return [{"role": "system", "content": text}] if text else []


def _stable(text: str) -> str:
    """What a system prompt says without what changes from one request to the next."""
    return _BUDGET.sub("", _BILLING.sub("", text))


def _text(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text" and isinstance(block.get("text"), str):
        text: str = block["text"]
        return text
    if kind == "document" and isinstance(block.get("source"), dict):
        data = block["source"].get("data")
        if block["source"].get("type") == "text" and isinstance(data, str):
            return data
    raise RequestError(
        f"{where} has a block of type {str(kind)[:40]!r}; this model takes text only.",
        code="unsupported_content",
        param=where.partition("[")[0],
    )


def _messages(message: dict[str, Any], i: int) -> list[dict[str, Any]]:
    """One of Anthropic's messages as one or more of a chat: each tool's result is its own."""
    role, content, where = message.get("role"), message.get("content"), f"messages[{i}]"
    if role not in _ROLES:
        raise RequestError(
            f"{where}.role is {str(role)[:40]!r}; it must be user or assistant.", param="messages"
        )
    if isinstance(content, str):
        return [{"role": role, "content": _stable(content) if role == "system" else content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise RequestError(f"{where}.content must be a text or a list of blocks.", param="messages")
    if role == "assistant":
        return [_said(content, f"{where}.content")]
    out: list[dict[str, Any]] = []
    texts: list[str] = []
    for block in content:
        if block.get("type") != "tool_result":
            text = _text(block, f"{where}.content")
            texts.append(_stable(text) if role == "system" else text)
            continue
        if texts:
            out.append({"role": role, "content": "\n".join(texts)})
            texts = []
        out.append(_result(block, f"{where}.content"))
    if texts or not out:
        out.append({"role": role, "content": "\n".join(texts)})
    return out


def _said(content: list[dict[str, Any]], where: str) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in content:
        kind = block.get("type")
        if kind == "tool_use":
            calls.append(_call(block, where))
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif kind != "redacted_thinking":
            texts.append(_text(block, where))
    out: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        out["reasoning_content"] = "\n".join(thoughts)
    if calls:
        out["tool_calls"] = calls
    return out


def _call(block: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(block.get("name"), str) or not isinstance(block.get("input", {}), dict):
        raise RequestError(
            f"{where} has a tool_use block without a name or with an input that is no object.",
            param="messages",
        )
    arguments = msgspec.json.encode(block.get("input", {})).decode()
    function = {"name": block["name"], "arguments": arguments}
    return {"id": str(block.get("id") or ""), "type": "function", "function": function}


def _result(block: dict[str, Any], where: str) -> dict[str, Any]:
    content = block.get("content")
    if isinstance(content, list):
        content = "\n".join(_text(part, where) for part in content)
    if content is not None and not isinstance(content, str):
        raise RequestError(
            f"{where} has a tool_result whose content is neither a text nor a list of blocks.",
            param="messages",
        )
    text = content or ""
    if block.get("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": str(block.get("tool_use_id") or ""), "content": text}
