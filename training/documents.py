"""What the generator writes: chats and plain texts, and how both become text to learn.

`segments` says the same as the chat template in `tokenizer.py`; a test holds them together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
TURN, END = "<|im_start|>", "<|im_end|>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
RESULT, RESULT_END = "<tool_response>", "</tool_response>"
TOOLS, TOOLS_END = "<tools>", "</tools>"

TOOLS_INTRO = (
    "# Tools\n\nYou may call one or more functions to answer the user.\n\n"
    "The functions are given as JSON within <tools></tools>:\n<tools>"
)
TOOLS_OUTRO = (
    "\n</tools>\n\nFor each call, answer with a JSON object within <tool_call></tool_call>:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <arguments-object>}\n</tool_call>'
)


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]

    def text(self) -> str:
        body = json.dumps(self.arguments, ensure_ascii=False)
        return f'{CALL}\n{{"name": "{self.name}", "arguments": {body}}}\n{CALL_END}'


@dataclass(frozen=True)
class Message:
    role: str
    """system, user, assistant or tool."""
    content: str
    calls: tuple[ToolCall, ...] = ()

    def as_openai(self) -> dict[str, Any]:
        """The message as an OpenAI client would send it."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            out["tool_calls"] = [
                {"type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.calls
            ]
        return out


@dataclass(frozen=True)
class Document:
    """A chat (`messages`, perhaps `tools`) or, without messages, a plain text."""

    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    text: str = ""
    begins: bool = True
    """Plain text only: whether it opens with BOS, as a completion's prompt may or may not."""


@dataclass(frozen=True)
class Segment:
    text: str
    learned: bool


Exchange = tuple[str, str]
"""What a user says, and the answer."""


def chat(*turns: str, system: str = "") -> Document:
    """A chat of alternating user and assistant turns, the user's first."""
    messages = [Message("system", system)] if system else []
    for i, turn in enumerate(turns):
        messages.append(Message("assistant" if i % 2 else "user", turn))
    return Document(tuple(messages))


def segments(document: Document, *, prompt: bool = False) -> list[Segment]:
    """The document as text, cut where learning begins and ends.

    prompt: open the assistant's next turn at the end, as `add_generation_prompt` does.
    """
    if not document.messages:
        parts = [Segment(BOS, False)] if document.begins else []
        return [*parts, Segment(document.text + EOS, True)]
    out: list[Segment] = []
    messages = list(document.messages)
    system = messages.pop(0).content if messages[0].role == "system" else ""
    if document.tools:
        listed = "".join("\n" + json.dumps(t, ensure_ascii=False) for t in document.tools)
        system = (system + "\n\n" if system else "") + TOOLS_INTRO + listed + TOOLS_OUTRO
    if system:
        out.append(Segment(f"{TURN}system\n{system}{END}\n", False))
    for message in messages:
        out += _turn(message)
    if prompt:
        out.append(Segment(f"{TURN}assistant\n", False))
    return _joined(out)


def _turn(message: Message) -> list[Segment]:
    if message.role == "tool":
        body = f"{RESULT}\n{message.content}\n{RESULT_END}"
        return [Segment(f"{TURN}tool\n{body}{END}\n", False)]
    if message.role != "assistant":
        return [Segment(f"{TURN}{message.role}\n{message.content}{END}\n", False)]
    calls = "\n".join(call.text() for call in message.calls)
    said = message.content + ("\n" if message.content and calls else "") + calls
    return [
        Segment(f"{TURN}assistant\n", False),
        Segment(said + END, True),
        Segment("\n", False),
    ]


def _joined(parts: Sequence[Segment]) -> list[Segment]:
    out: list[Segment] = []
    for part in parts:
        if out and out[-1].learned == part.learned:
            out[-1] = Segment(out[-1].text + part.text, part.learned)
        else:
            out.append(part)
    return out
