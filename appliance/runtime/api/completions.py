"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from appliance.errors import RequestError
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.api.generate import read_body, send_to_engines
from appliance.runtime.api.logprobs import completion_logprobs, prompt_logprobs
from appliance.runtime.api.models import Models
from appliance.runtime.api.schema import MAX_SEQUENCES, CompletionRequest, decode_body
from appliance.runtime.api.sse import PlainChunks, encode, event
from appliance.runtime.wire.request import TokenRequest, ids_from_bytes
from appliance.runtime.wire.text import Infill, TextDelta, TextRequest

DEFAULT_MAX_TOKENS = 16


class CompletionForm:
    """echoes: the prompt's text for each choice, empty without echo."""

    def __init__(
        self,
        body: CompletionRequest,
        id: str,
        model: str,
        tokens: Sequence[TokenRequest],
        echoes: Sequence[str],
    ) -> None:
        self._body, self._tokens, self._echoes = body, tokens, echoes
        self._usage_null = body.usage_options()[0]
        self._head = {
            "id": id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._started = [False] * len(tokens)
        self._rich = body.logprobs is not None or bool(body.return_token_ids)
        self._plain = PlainChunks(
            self._shell([self._choice(0, PlainChunks.MARK)], None), len(tokens)
        )

    def chunk(self, choice: int, delta: TextDelta, usage: dict[str, Any] | None) -> bytes:
        started = self._started[choice]
        if started and not delta.finish and not self._rich and usage is None:
            return self._plain.chunk(choice, delta.text) if delta.text else b""
        text = delta.text
        if not started:
            text = self._echoes[choice] + text
        if not (
            text or delta.finish or delta.logprobs or delta.prompt_logprobs or self._ids(delta)
        ):
            return b""
        self._started[choice] = True
        shown = self._choice(choice, text)
        self._fill(shown, choice, delta, first=not started)
        return event(self._shell([shown], usage))

    def _ids(self, delta: TextDelta) -> Sequence[int]:
        """Shown even when their text is held back for a whole character."""
        return delta.ids if self._body.return_token_ids else ()

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        return event(self._shell([], usage))

    def body(self, choices: Sequence[TextDelta], usage: dict[str, Any]) -> bytes:
        shown: list[dict[str, Any]] = []
        for i, delta in enumerate(choices):
            one = self._choice(i, self._echoes[i] + delta.text)
            self._fill(one, i, delta, first=True)
            if self._body.prompt_logprobs is not None:
                one["prompt_logprobs"] = prompt_logprobs(delta.prompt_logprobs)
            shown.append(one)
        return encode(self._head | {"choices": shown, "usage": usage})

    def _shell(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        shell = self._head | {"choices": choices}
        if usage is not None or self._usage_null:
            shell["usage"] = usage
        return shell

    def _choice(self, choice: int, text: str) -> dict[str, Any]:
        return {"index": choice, "text": text, "logprobs": None, "finish_reason": None}

    def _fill(self, shown: dict[str, Any], choice: int, delta: TextDelta, first: bool) -> None:
        if self._body.logprobs is not None:
            prompt = delta.prompt_logprobs if self._body.echo else ()
            shown["logprobs"] = completion_logprobs(
                prompt, delta.logprobs, len(self._echoes[choice])
            )
        if self._body.return_token_ids:
            shown["token_ids"] = delta.ids
            if first:
                prompt_ids = ids_from_bytes(self._tokens[choice].prompt)
                shown["prompt_token_ids"] = prompt_ids.tolist()
        if delta.finish:
            shown["finish_reason"] = delta.finish
            shown["stop_reason"] = delta.matched


class Completions:
    def __init__(self, frontend: Frontend, models: Models) -> None:
        self._frontend, self._models = frontend, models

    async def post(self, request: Request) -> Response:
        body = decode_body(CompletionRequest, await read_body(request))
        model = self._models.check(body.model)
        asked = self.asked(body)
        names = body.names * len(asked)
        exchange = await send_to_engines(self._frontend, request, asked, names)
        try:
            echoes = await self._echoes(body, asked)
        except BaseException:
            exchange.close()
            raise
        form = CompletionForm(
            body, f"cmpl-{request.scope['state']['request_id']}", model, exchange.tokens, echoes
        )
        if not body.stream:
            return await exchange.whole(form)
        return await exchange.stream(form, *body.usage_options(), keep_alive_s=0.0)

    def asked(self, body: CompletionRequest) -> list[TextRequest]:
        """What a completion of any dialect asks for. RequestError for what cannot be honoured."""
        body.refuse_unsupported()
        prompts, n = body.prompts(), body.n or 1
        if len(prompts) * n > MAX_SEQUENCES:
            raise RequestError(
                f"{len(prompts)} prompts times n = {n} are {len(prompts) * n} sequences; at most "
                f"{MAX_SEQUENCES} are taken in one request.",
                code="too_many_prompts",
                param="prompt",
            )
        self._frontend.check_open(len(prompts) * n)
        logprobs = -1 if body.logprobs is None else body.logprobs
        sampling = body.sampling(body.max_tokens, logprobs, echo=bool(body.echo))
        arrival, grammar = time.monotonic(), body.grammar()
        return [
            TextRequest(
                rids=self._frontend.mint(n),
                prompt=_with_suffix(prompt, body) if body.suffix else prompt,
                sampling=sampling,
                default_max_tokens=DEFAULT_MAX_TOKENS,
                stop=body.stops(),
                include_stop=body.includes_stop,
                skip_special_tokens=body.skip_special_tokens is not False,
                add_special_tokens=body.add_special_tokens is not False,
                priority=body.priority or 0,
                arrival=arrival,
                cache_key=body.cache_key,
                grammar=grammar,
            )
            for prompt in prompts
        ]

    async def _echoes(self, body: CompletionRequest, asked: Sequence[TextRequest]) -> list[str]:
        out: list[str] = []
        for request in asked:
            text = ""
            if body.echo and isinstance(request.prompt, str):
                text = request.prompt
            elif body.echo and isinstance(request.prompt, tuple):
                text = await self._frontend.text.decode(request.prompt, skip_special_tokens=True)
            out += [text] * len(request.rids)
        return out


def _with_suffix(prompt: str | tuple[int, ...], body: CompletionRequest) -> Infill:
    if not isinstance(prompt, str) or body.echo:
        raise RequestError(
            "suffix needs a prompt that is text, and no echo.",
            code="invalid_value",
            param="suffix",
        )
    return Infill(prompt, body.suffix or "")
