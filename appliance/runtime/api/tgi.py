"""Text Generation Inference's dialect: /generate_stream, and /generate for bodies with `inputs`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from appliance.runtime.api.completions import Completions
from appliance.runtime.api.errors import tgi_error
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.generate import read_body, send_to_engines
from appliance.runtime.api.models import Models
from appliance.runtime.api.schema import (
    CompletionRequest,
    convert_body,
    decode_body,
)
from appliance.runtime.api.sse import Framing, encode
from appliance.runtime.wire.request import TokenRequest, ids_from_bytes
from appliance.runtime.wire.text import TextDelta, TextLogprob

DEFAULT_MAX_TOKENS = 100
DIALECT = "/generate_stream"


class TgiParameters(Struct, kw_only=True):
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    do_sample: bool | None = None
    seed: int | None = None
    stop: list[str] | None = None
    stop_sequences: list[str] | None = None
    return_full_text: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    top_n_tokens: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: int | None = None
    grammar: dict[str, Any] | None = None

    @property
    def samples(self) -> bool:
        given = (self.temperature, self.top_k, self.top_p)
        return bool(self.do_sample) or any(value is not None for value in given)


class TgiRequest(Struct, kw_only=True):
    inputs: str
    parameters: TgiParameters | None = None
    stream: bool | None = None

    def as_completion(self, stream: bool) -> CompletionRequest:
        p = self.parameters or TgiParameters()
        fields: dict[str, Any] = {
            "prompt": self.inputs,
            "stream": stream,
            "max_tokens": p.max_new_tokens,
            "temperature": (1.0 if p.temperature is None else p.temperature) if p.samples else 0.0,
            "top_k": p.top_k,
            "top_p": p.top_p,
            "repetition_penalty": p.repetition_penalty,
            "frequency_penalty": p.frequency_penalty,
            "seed": p.seed,
            "stop": [*(p.stop or ()), *(p.stop_sequences or ())] or None,
            "best_of": p.best_of,
            "include_stop_str_in_output": True,
            "logprobs": p.top_n_tokens or 0,
            "echo": bool(p.decoder_input_details) and not stream,
        }
        if p.grammar is not None:
            fields |= _constraint(p.grammar)
        return convert_body(CompletionRequest, fields)


class TgiForm:
    """bare: the answer's object stands in a list, as at the root."""

    def __init__(self, body: TgiRequest, tokens: Sequence[TokenRequest], bare: bool) -> None:
        self._body, self._bare = body, bare
        self._parameters = body.parameters or TgiParameters()
        self._tokens = tokens[0]
        self._text = ""
        self._shown = 0
        self._count = 0
        self.framing = Framing(b"", lambda error: _event(tgi_error(error)))

    def chunk(self, choice: int, delta: TextDelta, usage: dict[str, Any] | None) -> bytes:
        self._text += delta.text
        entries, out = delta.logprobs, []
        for i, entry in enumerate(entries):
            self._count += 1
            last = i + 1 == len(entries)
            until = len(self._text) if last else min(entries[i + 1].offset, len(self._text))
            text = self._text[self._shown : max(self._shown, until)]
            self._shown += len(text)
            ended = last and bool(delta.finish)
            details = self._details(delta, self._count) if ended else None
            shown = {
                "index": self._count,
                "token": _token(entry, text, delta.matched),
                "generated_text": self._whole() if ended else None,
                "details": details,
            }
            if self._parameters.top_n_tokens:
                shown["top_tokens"] = _top(entry)
            out.append(_event(shown))
        return b"".join(out)

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        return b""

    def body(self, choices: Sequence[TextDelta], usage: dict[str, Any]) -> bytes:
        delta = choices[0]
        self._text = delta.text
        shown: dict[str, Any] = {"generated_text": self._whole()}
        if self._parameters.details or self._parameters.decoder_input_details:
            details = self._details(delta, len(delta.ids))
            details["prefill"] = [
                {"id": e.id, "text": e.text, "logprob": e.logprob} for e in delta.prompt_logprobs
            ]
            details["tokens"] = [_token(e, e.text, delta.matched) for e in delta.logprobs]
            if self._parameters.top_n_tokens:
                details["top_tokens"] = [_top(e) for e in delta.logprobs]
            shown["details"] = details
        return encode([shown] if self._bare else shown)

    def _whole(self) -> str:
        return (self._body.inputs if self._parameters.return_full_text else "") + self._text

    def _details(self, delta: TextDelta, tokens: int) -> dict[str, Any]:
        reason = "length"
        if delta.finish == "stop":
            reason = "stop_sequence" if isinstance(delta.matched, str) else "eos_token"
        return {
            "finish_reason": reason,
            "generated_tokens": tokens,
            "input_length": len(ids_from_bytes(self._tokens.prompt)),
            "seed": self._tokens.sampling.seed if self._parameters.samples else None,
        }


class Tgi:
    """completions: the route whose requests these become."""

    def __init__(self, frontend: Frontend, models: Models, completions: Completions) -> None:
        self._frontend, self._models, self._completions = frontend, models, completions

    async def generate_stream(self, request: Request) -> Response:
        return await self.answer(request, await read_body(request), stream=True)

    async def root(self, request: Request) -> Response:
        """What clients post to the bare address: streamed when the body says so."""
        return await self.answer(request, await read_body(request), bare=True)

    async def info(self, request: Request) -> Response:
        context = self._frontend.context
        shown = {
            "model_id": self._models.id,
            "model_pipeline_tag": "text-generation",
            "max_input_tokens": context - 1,
            "max_total_tokens": context,
            "version": version("appliance"),
        }
        return Response(encode(shown), media_type="application/json")

    async def answer(
        self, request: Request, data: bytes, stream: bool = False, bare: bool = False
    ) -> Response:
        request.scope["state"]["dialect"] = DIALECT
        body = decode_body(TgiRequest, data)
        stream = stream or bool(body.stream)
        [asked] = self._completions.asked(body.as_completion(stream))
        asked = msgspec.structs.replace(asked, default_max_tokens=DEFAULT_MAX_TOKENS)
        exchange = await send_to_engines(self._frontend, request, [asked])
        form = TgiForm(body, exchange.tokens, bare)
        if not stream:
            return await exchange.whole(form)
        return await exchange.stream(form, False, False, 0.0, form.framing)


def _constraint(grammar: dict[str, Any]) -> dict[str, Any]:
    """As completions have it; value of type json_schema holds the schema beside its name."""
    kind, value = grammar.get("type"), grammar.get("value")
    if kind == "regex":
        return {"regex": value}
    if kind == "json_schema" and isinstance(value, dict):
        value = value.get("schema", value)
    return {"json_schema": value}


def _event(value: dict[str, Any]) -> bytes:
    return b"data:" + encode(value) + b"\n\n"


def _token(entry: TextLogprob, text: str, ended_by: int | str | None) -> dict[str, Any]:
    special = entry.id == ended_by
    return {"id": entry.id, "text": text, "logprob": entry.logprob, "special": special}


def _top(entry: TextLogprob) -> list[dict[str, Any]]:
    return [
        {"id": id, "text": text, "logprob": value, "special": False}
        for id, text, _, value in entry.top
    ]
