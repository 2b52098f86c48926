"""An answer as SGLang's /generate writes it: text so far, ids so far, and meta_info."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from appliance.runtime.api.native.body import Wish
from appliance.runtime.api.sse import encode, event
from appliance.runtime.wire.request import TokenRequest
from appliance.runtime.wire.text import TextDelta, TextLogprob


class _Choice:
    """What one sequence has got so far."""

    def __init__(self, wish: Wish, name: str, tokens: TokenRequest, with_text: bool) -> None:
        self._wish, self._name, self._with_text = wish, name, with_text
        self._arrival = tokens.arrival
        self._prompt_tokens = len(tokens.prompt) // 4
        self._text = ""
        self._ids: list[int] = []
        self._cached = 0
        self._input: Sequence[TextLogprob] = ()
        self._output: list[TextLogprob] = []
        self._last: TextDelta | None = None

    def take(self, delta: TextDelta) -> None:
        self._text += delta.text
        self._ids += delta.ids
        self._cached = max(self._cached, delta.cached)
        self._input = self._input or delta.prompt_logprobs
        self._output += delta.logprobs
        self._last = delta

    def shown(self) -> dict[str, Any]:
        return {"text": self._text, "output_ids": self._ids, "meta_info": self._meta()}

    def _meta(self) -> dict[str, Any]:
        last = self._last
        meta: dict[str, Any] = {
            "id": self._name,
            "finish_reason": None if last is None else _reason(last, len(self._ids)),
            "prompt_tokens": self._prompt_tokens,
            "weight_version": "default",
            "completion_tokens": len(self._ids),
            "cached_tokens": self._cached,
        }
        if self._wish.logprobs >= 0:
            start = self._wish.start
            shown = self._input[start:] if start >= 0 else ()
            meta["input_token_logprobs"] = [self._own(e) for e in shown]
            meta["output_token_logprobs"] = [self._own(e) for e in self._output]
            meta["output_token_logprobs_length"] = len(self._output)
            if self._wish.logprobs > 0:
                meta["input_top_logprobs"] = [self._top(e) for e in shown]
                meta["output_top_logprobs"] = [self._top(e) for e in self._output]
        if last is not None and last.finish:
            meta["e2e_latency"] = time.monotonic() - self._arrival
        return meta

    def _own(self, entry: TextLogprob) -> tuple[float | None, int, str | None]:
        return entry.logprob, entry.id, entry.text if self._with_text else None

    def _top(self, entry: TextLogprob) -> list[tuple[float, int, str | None]] | None:
        if entry.logprob is None:
            return None
        return [(value, id, text if self._with_text else None) for id, text, _, value in entry.top]


def _reason(last: TextDelta, tokens: int) -> dict[str, Any] | None:
    if last.finish == "length":
        return {"type": "length", "length": tokens}
    if last.finish == "abort":
        return {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
    if last.finish == "stop":
        return {"type": "stop", "matched": last.matched}
    return None


class NativeForm:
    """listed: the answer is a list, and events say whose they are."""

    def __init__(
        self,
        asked: Sequence[Wish],
        tokens: Sequence[TokenRequest],
        listed: bool,
        with_text: bool,
    ) -> None:
        n = len(tokens) // len(asked)
        self._listed = listed
        self._choices: list[_Choice] = []
        for i, one in enumerate(tokens):
            wish = asked[i // n]
            name = wish.name if n == 1 else f"{wish.name}_{i % n}"
            self._choices.append(_Choice(wish, name, one, with_text))

    def chunk(self, choice: int, delta: TextDelta, usage: dict[str, Any] | None) -> bytes:
        self._choices[choice].take(delta)
        shown = self._choices[choice].shown()
        return event(shown | {"index": choice} if self._listed else shown)

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        return b""

    def body(self, choices: Sequence[TextDelta], usage: dict[str, Any]) -> bytes:
        for choice, delta in zip(self._choices, choices, strict=True):
            choice.take(delta)
        shown = [choice.shown() for choice in self._choices]
        return encode(shown if self._listed else shown[0])
