"""TextRequest -> TokenRequests: the prompt's ids, and every sampling value decided."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from appliance.errors import PromptTooLongError, RequestError
from appliance.runtime.spec import ModelSpec
from appliance.runtime.text.infill import Infilling
from appliance.runtime.text.template import ChatTemplate
from appliance.runtime.text.vocabulary import Vocabulary
from appliance.runtime.wire.request import Pool, Sampling, TokenRequest, ids_to_bytes
from appliance.runtime.wire.text import AskedSampling, Chat, Infill, Pair, Prompt, TextRequest

CHARACTERS_PER_TOKEN = 64
"""A text longer than this many times the context is refused unread: no vocabulary packs so much."""

GREEDY_BELOW = 1e-6
_SEEDS = 1 << 63


class Defaults:
    """What the model's generation_config.json says of sampling; numbers only."""

    def __init__(self, generation: dict[str, Any]) -> None:
        def number(name: str, usual: float) -> float:
            value = generation.get(name)
            ok = isinstance(value, int | float) and not isinstance(value, bool)
            return float(value) if ok and value is not None else usual

        self.temperature = number("temperature", 1.0)
        self.top_p = number("top_p", 1.0)
        self.top_k = max(0, int(number("top_k", 0)))
        self.min_p = number("min_p", 0.0)
        self.repetition_penalty = number("repetition_penalty", 1.0)


class Tokenizing:
    """Blocking, and safe in several threads at once."""

    def __init__(
        self, vocabulary: Vocabulary, template: ChatTemplate, spec: ModelSpec, defaults: Defaults
    ) -> None:
        self._vocabulary, self._template = vocabulary, template
        self._infilling = Infilling(vocabulary)
        self._spec, self._defaults = spec, defaults
        eos = vocabulary.id_of(vocabulary.special("eos_token"))
        self._eos = tuple(dict.fromkeys((*spec.eos_ids, *(() if eos is None else (eos,)))))

    def requests(self, asked: TextRequest, context: int) -> list[TokenRequest]:
        if asked.truncate:
            ids = self._shortened(asked, context)
        else:
            ids = self.prompt_ids(asked.prompt, asked.add_special_tokens, context, asked.param)
        if not ids:
            raise RequestError("the prompt has no tokens.", param=asked.param)
        max_tokens = _max_tokens(asked, len(ids), context)
        sampling = self._sampling(asked.sampling, max_tokens)
        prompt = ids_to_bytes(ids)
        first_seed = asked.sampling.seed
        base = secrets.randbelow(_SEEDS) if first_seed is None else first_seed
        return [
            TokenRequest(
                rid=rid,
                prompt=prompt,
                sampling=msgspec.structs.replace(sampling, seed=(base + i) % _SEEDS),
                priority=asked.priority,
                arrival=asked.arrival,
                cache_key=asked.cache_key,
                grammar=asked.grammar,
            )
            for i, rid in enumerate(asked.rids)
        ]

    def prompt_ids(
        self, prompt: Prompt, add_special_tokens: bool, context: int, param: str
    ) -> Sequence[int]:
        if isinstance(prompt, Chat):
            size = sum(len(str(m.get("content", ""))) for m in prompt.messages)
            _refuse_unread(size, context, param)
            ids = self._template.encode(prompt)
        elif isinstance(prompt, Infill):
            _refuse_unread(len(prompt.before) + len(prompt.after), context, param)
            ids = self._infilling.encode(prompt, add_special_tokens)
        elif isinstance(prompt, Pair):
            _refuse_unread(len(prompt.first) + len(prompt.second), context, param)
            ids = self._vocabulary.encode_pair(prompt.first, prompt.second)
        elif isinstance(prompt, str):
            _refuse_unread(len(prompt), context, param)
            ids = self._vocabulary.encode(prompt, add_special_tokens)
        else:
            self._check_ids(prompt, param)
            return prompt
        return ids

    def _shortened(self, asked: TextRequest, context: int) -> Sequence[int]:
        limit, prompt = asked.truncate if asked.truncate > 0 else context - 1, asked.prompt
        if not isinstance(prompt, str):
            return self.prompt_ids(prompt, asked.add_special_tokens, context, asked.param)[:limit]
        text = prompt[: CHARACTERS_PER_TOKEN * context]
        whole = self._vocabulary.encode(text, asked.add_special_tokens)
        if len(whole) <= limit:
            return whole
        plain = self._vocabulary.encode(text, False)
        around = len(whole) - len(plain)
        starts = (n for n in range(around + 1) if whole[n : n + len(plain)] == plain)
        start = next(starts, 0)
        kept = max(0, limit - around)
        return [*whole[: start + kept], *whole[start + len(plain) :]][:limit]

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        if not ids:
            return
        lowest, highest, last = min(ids), max(ids), self._spec.vocab - 1
        if lowest < 0 or highest > last:
            wrong = lowest if lowest < 0 else highest
            raise RequestError(
                f"{param} holds the token id {wrong}; this model's ids are 0 to {last}.",
                param=param,
            )

    def _sampling(self, asked: AskedSampling, max_tokens: int) -> Sampling:
        self._check_ids(asked.stop_ids, "stop_token_ids")
        self._check_ids([i for i, _ in asked.logit_bias], "logit_bias")
        pool = self._pool(asked)
        if pool:  # the model's defaults are for what it writes, which is nothing here
            asked_for = asked.temperature or 0.0 if pool == "labels" else 0.0
            return Sampling(max_tokens, temperature=asked_for, pool=pool, labels=asked.labels)
        defaults = self._defaults
        temperature = _or(asked.temperature, defaults.temperature)
        stop_ids = asked.stop_ids if asked.ignore_eos else (*self._eos, *asked.stop_ids)
        return Sampling(
            max_tokens=max_tokens,
            temperature=0.0 if temperature < GREEDY_BELOW else temperature,
            top_k=defaults.top_k if asked.top_k is None else max(0, asked.top_k),
            top_p=_or(asked.top_p, defaults.top_p),
            min_p=_or(asked.min_p, defaults.min_p),
            frequency_penalty=asked.frequency_penalty,
            presence_penalty=asked.presence_penalty,
            repetition_penalty=_or(asked.repetition_penalty, defaults.repetition_penalty),
            min_tokens=asked.min_tokens,
            stop_ids=tuple(dict.fromkeys(stop_ids)),
            logit_bias=asked.logit_bias,
            logprobs=asked.logprobs,
            prompt_logprobs=asked.prompt_logprobs,
        )

    def _pool(self, asked: AskedSampling) -> Pool:
        """RequestError when the model cannot give what is asked for."""
        spec = self._spec
        if asked.pool:
            return "classes" if spec.labels else spec.pooling or "last"
        if spec.labels or spec.headless:
            made = "embeddings: ask /v1/embeddings"
            if spec.labels:
                made = "scores: ask /classify, /v1/score or /v1/rerank"
            raise RequestError(
                f"this model ({spec.architecture}) writes no text; it gives {made}.",
                code="unsupported_for_model",
                param="model",
            )
        if asked.labels:
            self._check_ids(asked.labels, "label_token_ids")
        return "labels" if asked.labels else ""


def _or(asked: float | None, default: float) -> float:
    return default if asked is None else asked


def _refuse_unread(characters: int, context: int, param: str) -> None:
    if characters > CHARACTERS_PER_TOKEN * context:
        raise PromptTooLongError(
            f"{characters:,} characters",
            tokens=0,
            context=context,
            cure=", and no text that long fits it.",
            param=param,
        )


def _max_tokens(asked: TextRequest, prompt_length: int, context: int) -> int:
    """RequestError when prompt and max_tokens do not fit the context; both numbers told."""
    room = context - prompt_length
    if room < 1:
        raise PromptTooLongError(
            f"{prompt_length:,} tokens",
            tokens=prompt_length,
            context=context,
            cure=f", and one must be left for the answer. Shorten it by {1 - room:,}.",
            param=asked.param,
        )
    wanted = asked.sampling.max_tokens
    if wanted is None:
        chosen = min(room, asked.default_max_tokens or room)
    elif wanted > room:
        raise RequestError(
            f"The prompt has {prompt_length:,} tokens and max_tokens is {wanted:,}; together they "
            f"are {prompt_length + wanted:,}, and this model's maximum context length is "
            f"{context:,} tokens. Ask for at most {room:,}.",
            code="context_length_exceeded",
            param="max_tokens",
        )
    else:
        chosen = wanted
    if asked.sampling.min_tokens > chosen:
        raise RequestError(
            f"min_tokens is {asked.sampling.min_tokens:,}, and at most {chosen:,} tokens can come.",
            param="min_tokens",
        )
    return chosen
