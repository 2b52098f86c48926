"""Request bodies: OpenAI's fields and the extensions clients send. Unknown fields are ignored."""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from appliance.errors import RequestError
from appliance.runtime.api.depth import check_depth
from appliance.runtime.api.structured import (
    Choices,
    ResponseFormat,
    StructuredOutputs,
    Wanted,
    Written,
)
from appliance.runtime.api.unsupported import CHAT_INSTEAD, OfGeneration, of_chat, refuse
from appliance.runtime.wire.request import Grammar
from appliance.runtime.wire.text import AskedSampling, Reasoning

INT32 = (1 << 31) - 1
INT64 = (1 << 63) - 1
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_BIASES = 1024
MAX_SEQUENCES = 1024

Name = Annotated[str, Meta(min_length=1, max_length=128)]
TokenId = Annotated[int, Meta(ge=0, le=INT32)]
Count = Annotated[int, Meta(ge=1, le=INT32)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class StreamOptions(Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ReasoningOptions(Struct):
    effort: Effort | None = None
    enabled: bool | None = None


class _Generation(OfGeneration, kw_only=True):
    """What both generating routes take."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=16)] | None = None
    stop: str | list[str] | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    seed: Annotated[int, Meta(ge=-INT64 - 1, le=INT64)] | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=2.0)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=INT32)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    priority: Annotated[int, Meta(ge=-INT32, le=INT32)] | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    extra_key: Annotated[str, Meta(max_length=256)] | None = None
    rid: Name | None = None
    request_id: Name | None = None
    return_token_ids: bool | None = None
    json_schema: Written | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: Written | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Written | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None

    def grammar(self) -> Grammar | None:
        """What the answer must be, by whichever field says it; RequestError when two do."""
        wanted = Wanted()
        if self.response_format is not None:
            wanted.add_format(self.response_format)
        wanted.add_native(self.json_schema, self.regex, self.ebnf, self.structural_tag)
        if self.structured_outputs is not None:
            wanted.add_outputs(self.structured_outputs)
        wanted.add_guided(
            self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar
        )
        return wanted.only()

    @property
    def names(self) -> list[str]:
        """What its caller calls it, so that it may be aborted by that; empty: nothing."""
        return [name for name in (self.rid, self.request_id) if name is not None][:1]

    @property
    def includes_stop(self) -> bool:
        return bool(self.include_stop_str_in_output or self.no_stop_trim)

    @property
    def cache_key(self) -> str:
        return self.cache_salt or self.extra_key or ""

    def usage_options(self) -> tuple[bool, bool]:
        """(a usage chunk at the end, usage on every chunk)"""
        options = self.stream_options
        if options is None:
            return False, False
        return bool(options.include_usage), bool(options.continuous_usage_stats)

    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(given) > MAX_STOPS:
            raise RequestError(
                f"stop has {len(given)} strings; at most {MAX_STOPS} are taken.", param="stop"
            )
        for stop in given:
            if not 1 <= len(stop.encode()) <= MAX_STOP_BYTES:
                raise RequestError(
                    f"a stop string has {len(stop.encode())} bytes; 1 to {MAX_STOP_BYTES} are "
                    "taken.",
                    param="stop",
                )
        return tuple(dict.fromkeys(given))

    def sampling(self, max_tokens: int | None, logprobs: int, echo: bool = False) -> AskedSampling:
        """logprobs: as in wire.Sampling. echo: the prompt's log probabilities are wanted too."""
        asked = -1 if self.prompt_logprobs is None else self.prompt_logprobs
        if asked >= 0 and self.stream:
            raise RequestError(
                "prompt_logprobs cannot be streamed; leave out stream.", param="prompt_logprobs"
            )
        return AskedSampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            min_tokens=self.min_tokens or 0,
            stop_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logit_bias=self._biases(),
            logprobs=logprobs,
            prompt_logprobs=max(asked, logprobs if echo else -1),
        )

    def refuse_unsupported(self) -> None:
        """RequestError for what would change the answer and is not there."""
        self.refuse_all()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise RequestError(
                f"best_of is {self.best_of}; only a value equal to n ({self.n or 1}) is supported.",
                code="unsupported_value",
                param="best_of",
            )

    def _biases(self) -> tuple[tuple[int, float], ...]:
        given = self.logit_bias or {}
        if len(given) > MAX_BIASES:
            raise RequestError(
                f"logit_bias has {len(given)} entries; at most {MAX_BIASES} are taken.",
                param="logit_bias",
            )
        out: list[tuple[int, float]] = []
        for key, value in given.items():
            if not (key.isascii() and key.isdigit() and len(key) < 11):
                raise RequestError(
                    f"logit_bias has the key {key[:40]!r}, which is no token id.",
                    param="logit_bias",
                )
            out.append((int(key), value))
        return tuple(out)


class CompletionRequest(_Generation, kw_only=True):
    prompt: str | list[Any]
    """A text, texts, ids, or lists of ids; `prompts` says which."""
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None

    def prompts(self) -> list[str | tuple[int, ...]]:
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if not given:
            raise RequestError("prompt is an empty list.", param="prompt")
        kinds = set(map(type, given))
        if kinds == {int}:
            return [tuple(given)]
        if kinds == {str}:
            return given
        if kinds == {list} and all(set(map(type, p)) <= {int} for p in given):
            return [tuple(p) for p in given]
        raise RequestError(
            "prompt must be a text, a list of texts, a list of token ids, or a list of lists of "
            "token ids.",
            param="prompt",
        )


Inputs = list[str | tuple[int, ...]]


def read_inputs(given: str | list[Any], param: str) -> Inputs:
    """A text, texts, ids, or lists of ids. RequestError names `param`."""
    try:
        found: Inputs = CompletionRequest(prompt=given).prompts()
    except RequestError as e:
        raise RequestError(e.message.replace("prompt", param), param=param) from e
    if len(found) > MAX_SEQUENCES:
        raise RequestError(
            f"{param} holds {len(found)} texts; at most {MAX_SEQUENCES} are taken in one request.",
            code="too_many_prompts",
            param=param,
        )
    return found


class ChatRequest(_Generation, kw_only=True):
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    function_call: str | dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    reasoning: ReasoningOptions | None = None
    include_reasoning: bool | None = None
    separate_reasoning: bool | None = None
    stream_reasoning: bool | None = None
    audio: Any = None
    chat_template: Any = None
    documents: Any = None
    modalities: Any = None
    web_search_options: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def refuse_all(self) -> None:
        super().refuse_all()
        refuse(of_chat(self), CHAT_INSTEAD)

    def shown_reasoning(self) -> Reasoning:
        """Where thoughts go: vLLM's include_reasoning and SGLang's separate_reasoning."""
        if self.include_reasoning is False:
            return "hidden"
        return "inline" if self.separate_reasoning is False else "separate"

    def template_variables(self) -> dict[str, Any]:
        """What the template is told besides; chat_template_kwargs have the last word."""
        asked = self.reasoning or ReasoningOptions()
        effort = self.reasoning_effort or asked.effort
        out: dict[str, Any] = {}
        if effort is not None:
            out["reasoning_effort"] = effort
        if effort is not None or asked.enabled is not None:
            thinks = effort != "none" and asked.enabled is not False
            out |= {"enable_thinking": thinks, "thinking": thinks}
        return out | (self.chat_template_kwargs or {})


class TokenizeRequest(Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    tokens: list[TokenId]
    model: str | None = None
    skip_special_tokens: bool | None = None


Body = TypeVar("Body", bound=Struct)


@functools.cache
def _decoder(kind: type[Body]) -> msgspec.json.Decoder[Body]:
    return msgspec.json.Decoder(kind)


_AT = re.compile(r" - at `\$\.?(.*)`$")


def decode_body(kind: type[Body], data: bytes) -> Body:
    """RequestError that names the field and its limit, or the byte where JSON ends."""
    check_depth(data)
    try:
        body: Body = _decoder(kind).decode(data)
    except msgspec.ValidationError as e:
        raise _wrong_field(e) from e
    except msgspec.DecodeError as e:
        raise RequestError(f"The body is not JSON: {e}.", code="invalid_json") from e
    except UnicodeDecodeError as e:
        raise RequestError(f"The body is not UTF-8 (byte {e.start}).", code="invalid_utf8") from e
    except RecursionError as e:
        raise RequestError("The body is nested too deeply.", code="nesting_too_deep") from e
    return body


def convert_body(kind: type[Body], fields: dict[str, Any]) -> Body:
    """What another dialect asks for, as a body of ours. RequestError as in decode_body."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as e:
        raise _wrong_field(e) from e


def _wrong_field(e: msgspec.ValidationError) -> RequestError:
    text = str(e)
    at = _AT.search(text)
    field = at.group(1) if at else None
    what = _AT.sub("", text)
    return RequestError(
        f"{field}: {_lower_first(what)}." if field else f"{what}.",
        code="invalid_value",
        param=re.split(r"[.\[]", field)[0] if field else _missing(what),
    )


def _missing(what: str) -> str | None:
    named = re.search(r"field `(\w+)`", what)
    return named.group(1) if named else None


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
