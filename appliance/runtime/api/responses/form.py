"""An answer as /v1/responses writes it: items, or the events in which they come into being."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from appliance.errors import RequestError
from appliance.runtime.api.parts import Section, Sections, parts
from appliance.runtime.api.responses.body import ResponsesRequest, as_plain
from appliance.runtime.api.sse import Framing, encode, named_event
from appliance.runtime.wire.text import TextDelta, TextLogprob

Keep = Callable[[dict[str, Any], list[dict[str, Any]]], None]
"""Is given the response and its output as messages of a chat."""

_PREFIX = {"text": "msg", "reasoning": "rs", "tool": "fc"}


class ResponseForm:
    def __init__(self, body: ResponsesRequest, id: str, model: str, keep: Keep) -> None:
        self._body, self._id, self._keep = body, id, keep
        self._head = _head(body, id, model)
        self._sections = Sections()
        self._logprobs: dict[int, list[TextLogprob]] = {}
        self._number = 0
        self._last: TextDelta | None = None
        self.framing = Framing(b"", self._failed)

    def chunk(self, choice: int, delta: TextDelta, usage: dict[str, Any] | None) -> bytes:
        out: list[bytes] = []
        if self._last is None:
            begun = self._response("in_progress", [], None)
            out.append(self._event("response.created", response=begun))
            out.append(self._event("response.in_progress", response=begun))
        self._last = delta
        for part in parts(delta):
            section, new = self._sections.take(part)
            if new:
                if section.index:
                    out.append(self._close(self._sections.all[section.index - 1], "completed"))
                out.append(self._open(section))
            if part.text:
                out.append(self._grown(section, part.text, delta))
        return b"".join(out)

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        last = self._last
        assert last is not None, "a stream ends after its last delta"
        status = _status(last)
        closed = b""
        if self._sections.all:
            closed = self._close(self._sections.all[-1], status)
        response = self._response(status, self._output(status), usage)
        self._keep(response, self._messages())
        return closed + self._event(f"response.{status}", response=response)

    def body(self, choices: Sequence[TextDelta], usage: dict[str, Any]) -> bytes:
        delta = choices[0]
        for part in parts(delta):
            section, _ = self._sections.take(part)
            if part.kind == "text":
                self._logprobs[section.index] = list(delta.logprobs)
        status = _status(delta)
        response = self._response(status, self._output(status), usage)
        self._keep(response, self._messages())
        return encode(response)

    def _failed(self, error: RequestError) -> bytes:
        response = self._response("failed", self._output("incomplete"), None)
        response["error"] = {"code": "server_error", "message": error.message}
        return self._event("response.failed", response=response)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return named_event(event)

    # One item as it comes

    def _open(self, section: Section) -> bytes:
        item = self._item(section, "in_progress", begun=True)
        added = self._event("response.output_item.added", output_index=section.index, item=item)
        if section.first.kind == "tool":
            return added
        part = self._part(section, begun=True)
        return added + self._event("response.content_part.added", **self._at(section), part=part)

    def _grown(self, section: Section, text: str, delta: TextDelta) -> bytes:
        kind = section.first.kind
        if kind == "tool":
            return self._event(
                "response.function_call_arguments.delta",
                item_id=self._item_id(section),
                output_index=section.index,
                delta=text,
            )
        if kind == "reasoning":
            return self._event("response.reasoning_text.delta", **self._at(section), delta=text)
        if delta.logprobs:
            self._logprobs.setdefault(section.index, []).extend(delta.logprobs)
        return self._event(
            "response.output_text.delta",
            **self._at(section),
            delta=text,
            logprobs=_short_logprobs(delta.logprobs),
        )

    def _close(self, section: Section, status: str) -> bytes:
        kind = section.first.kind
        out: list[bytes] = []
        if kind == "tool":
            out.append(
                self._event(
                    "response.function_call_arguments.done",
                    item_id=self._item_id(section),
                    output_index=section.index,
                    name=section.first.name,
                    arguments=section.text,
                )
            )
        elif kind == "reasoning":
            at = self._at(section)
            out.append(self._event("response.reasoning_text.done", **at, text=section.text))
        else:
            logprobs = _short_logprobs(self._logprobs.get(section.index, ()))
            out.append(
                self._event(
                    "response.output_text.done",
                    **self._at(section),
                    text=section.text,
                    logprobs=logprobs,
                )
            )
        if kind != "tool":
            part = self._part(section)
            out.append(self._event("response.content_part.done", **self._at(section), part=part))
        item = self._item(section, status)
        out.append(self._event("response.output_item.done", output_index=section.index, item=item))
        return b"".join(out)

    def _at(self, section: Section) -> dict[str, Any]:
        return {
            "item_id": self._item_id(section),
            "output_index": section.index,
            "content_index": 0,
        }

    def _item_id(self, section: Section) -> str:
        return f"{_PREFIX[section.first.kind]}_{self._id[-32:]}{section.index}"

    def _part(self, section: Section, begun: bool = False) -> dict[str, Any]:
        text = "" if begun else section.text
        if section.first.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        logprobs = () if begun else self._logprobs.get(section.index, ())
        return {
            "type": "output_text",
            "text": text,
            "annotations": [],
            "logprobs": _full_logprobs(logprobs),
        }

    def _item(self, section: Section, status: str, begun: bool = False) -> dict[str, Any]:
        first = section.first
        head = {"id": self._item_id(section), "status": status}
        if first.kind == "tool":
            return {
                **head,
                "type": "function_call",
                "call_id": first.id,
                "name": first.name,
                "arguments": "" if begun else section.text,
            }
        content = [] if begun else [self._part(section)]
        if first.kind == "reasoning":
            return {**head, "type": "reasoning", "summary": [], "content": content}
        return {**head, "type": "message", "role": "assistant", "content": content}

    # The whole

    def _output(self, status: str) -> list[dict[str, Any]]:
        every = self._sections.all
        return [self._item(s, "completed" if s is not every[-1] else status) for s in every]

    def _messages(self) -> list[dict[str, Any]]:
        """This answer as the assistant's message of the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        for section in self._sections.all:
            first, text = section.first, section.text
            if first.kind == "text":
                message["content"] += text
            elif first.kind == "reasoning":
                message["reasoning_content"] = message.get("reasoning_content", "") + text
            else:
                function = {"name": first.name, "arguments": text}
                call = {"id": first.id, "type": "function", "function": function}
                message.setdefault("tool_calls", []).append(call)
        return [message]

    def _response(
        self, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        out = {**self._head, "status": status, "output": output}
        if status == "incomplete":
            out["incomplete_details"] = {"reason": "max_output_tokens"}
        if status == "completed":
            out["completed_at"] = int(time.time())
        out["usage"] = None if usage is None else _usage(usage)
        return out


def _status(last: TextDelta) -> str:
    return "incomplete" if last.finish == "length" else "completed"


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    thoughts = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thoughts},
        "total_tokens": usage["total_tokens"],
    }


def _head(body: ResponsesRequest, id: str, model: str) -> dict[str, Any]:
    text = {"format": {"type": "text"}}
    text |= {k: v for k, v in as_plain(body.text).items() if v is not None}
    return {
        "id": id,
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "tool_choice": body.tool_choice or "auto",
        "tools": body.functions(),
        "max_output_tokens": body.max_output_tokens,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None} | as_plain(body.reasoning),
        "text": text,
        "truncation": "disabled",
        "background": False,
        "store": body.store is not False,
        "user": body.user,
    }


def _short_logprobs(entries: Sequence[TextLogprob]) -> list[dict[str, Any]]:
    """As events have them."""
    return [
        {
            "token": e.text,
            "logprob": e.logprob,
            "top_logprobs": [{"token": text, "logprob": value} for _, text, _, value in e.top],
        }
        for e in entries
    ]


def _full_logprobs(entries: Sequence[TextLogprob]) -> list[dict[str, Any]]:
    return [
        {
            "token": e.text,
            "bytes": list(e.raw),
            "logprob": e.logprob,
            "top_logprobs": [
                {"token": text, "bytes": list(raw), "logprob": value}
                for _, text, raw, value in e.top
            ],
        }
        for e in entries
    ]
