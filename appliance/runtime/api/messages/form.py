"""An answer as Anthropic writes it: blocks of text, thinking and tool use, or named events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from appliance.runtime.api.errors import anthropic_error
from appliance.runtime.api.messages.body import MessagesRequest
from appliance.runtime.api.parts import Part, Section, Sections, parts
from appliance.runtime.api.sse import Framing, encode, named_event
from appliance.runtime.wire.request import TokenRequest
from appliance.runtime.wire.text import TextDelta

_PING = named_event({"type": "ping"})
_STOP = named_event({"type": "message_stop"})
_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "tool": ("input_json_delta", "partial_json"),
}


class MessageForm:
    """A prompt has one choice in this dialect."""

    def __init__(
        self, body: MessagesRequest, id: str, model: str, tokens: Sequence[TokenRequest]
    ) -> None:
        self._body = body
        self._prompt_tokens = len(tokens[0].prompt) // 4
        self._clipped = tokens[0].sampling.max_tokens < body.max_tokens
        self._head = {"id": id, "type": "message", "role": "assistant", "model": model}
        self._sections = Sections()
        self._around = (b"", b"")
        self._cached = -1
        self._last: TextDelta | None = None
        self.framing = Framing(b"", lambda error: named_event(anthropic_error(error)))

    def chunk(self, choice: int, delta: TextDelta, usage: dict[str, Any] | None) -> bytes:
        out: list[bytes] = []
        if self._cached < 0:
            self._cached = max(0, delta.cached)
            message = self._message([], (None, None), 0)
            out.append(named_event({"type": "message_start", "message": message}) + _PING)
        for part in parts(delta):
            section, new = self._sections.take(part)
            if new:
                out.append(self._turn(section))
            if part.text:
                head, tail = self._around
                out.append(head + encode(part.text) + tail)
        self._last = delta
        return b"".join(out)

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        last = self._last
        assert last is not None, "a stream ends after its last delta"
        reason, sequence = self._ended(last)
        ended = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": self._usage(usage["completion_tokens"]),
        }
        every = self._sections.all
        return (_closed(every[-1].index) if every else b"") + named_event(ended) + _STOP

    def body(self, choices: Sequence[TextDelta], usage: dict[str, Any]) -> bytes:
        delta = choices[0]
        for part in parts(delta):
            self._sections.take(part)
        self._cached = max(0, delta.cached)
        content = [_block(s.first, s.text) for s in self._sections.all]
        return encode(self._message(content, self._ended(delta), usage["completion_tokens"]))

    def _turn(self, section: Section) -> bytes:
        """Ends the block before this one and begins it."""
        closed = _closed(section.index - 1) if section.index else b""
        kind, field = _DELTAS[section.first.kind]
        delta = {
            "type": "content_block_delta",
            "index": section.index,
            "delta": {"type": kind, field: ""},
        }
        head, _, tail = named_event(delta).rpartition(b'""')
        self._around = (head, tail)
        start = {
            "type": "content_block_start",
            "index": section.index,
            "content_block": _block(section.first, ""),
        }
        return closed + named_event(start)

    def _message(
        self, content: list[dict[str, Any]], ended: tuple[str | None, str | None], output: int
    ) -> dict[str, Any]:
        return {
            **self._head,
            "content": content,
            "stop_reason": ended[0],
            "stop_sequence": ended[1],
            "usage": self._usage(output),
        }

    def _usage(self, output: int) -> dict[str, Any]:
        """Anthropic's input_tokens leave out what the cache held."""
        return {
            "input_tokens": self._prompt_tokens - self._cached,
            "cache_read_input_tokens": self._cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": output,
        }

    def _ended(self, last: TextDelta) -> tuple[str, str | None]:
        """(stop_reason, stop_sequence)"""
        if last.finish == "length":
            return ("model_context_window_exceeded" if self._clipped else "max_tokens"), None
        if self._sections.has_calls:
            return "tool_use", None
        if isinstance(last.matched, str):
            return "stop_sequence", last.matched
        return "end_turn", None


def _closed(index: int) -> bytes:
    return named_event({"type": "content_block_stop", "index": index})


def _block(first: Part, text: str) -> dict[str, Any]:
    if first.kind == "text":
        return {"type": "text", "text": text}
    if first.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    return {"type": "tool_use", "id": first.id, "name": first.name, "input": _object(text)}


def _object(text: str) -> dict[str, Any]:
    """Arguments that a model left unfinished are no object."""
    try:
        value = msgspec.json.decode(text) if text else {}
    except msgspec.DecodeError:
        value = {}
    return value if isinstance(value, dict) else {}
