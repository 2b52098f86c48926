"""The body of /generate in SGLang's shape, and the same wishes as completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from appliance.errors import RequestError
from appliance.runtime.api.schema import (
    MAX_SEQUENCES,
    CompletionRequest,
    TokenId,
    convert_body,
)

DEFAULT_MAX_TOKENS = 128
LONGEST_NAME = 128

_SAME = (
    "n", "stop", "stop_token_ids", "ignore_eos", "skip_special_tokens", "logit_bias",
    "frequency_penalty", "presence_penalty",
)  # fmt: skip
"""Fields of sampling_params that completions know by the same name."""

_RENAMED = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
    "no_stop_trim": "include_stop_str_in_output",
    "json_schema": "json_schema",
    "regex": "regex",
    "ebnf": "ebnf",
    "structural_tag": "structural_tag",
}
_USUAL = {
    "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
}  # fmt: skip
"""The native route's defaults are these, whatever the model's own are."""

_CONSTRAINTS = ("json_schema", "regex", "ebnf", "structural_tag")


class NativeRequest(Struct, kw_only=True):
    text: str | list[str] | None = None
    input_ids: list[Any] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    rid: str | list[str] | None = None
    stream: bool | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    return_text_in_logprobs: bool | None = None
    priority: Annotated[int, Meta(ge=-(1 << 31) + 1, le=(1 << 31) - 1)] | None = None
    extra_key: Annotated[str, Meta(max_length=256)] | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    inputs: Any = None
    """Present in TGI's shape of this route."""
    input_embeds: Any = None
    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None
    lora_path: Any = None
    token_ids_logprob: Any = None
    return_hidden_states: Any = None
    return_routed_experts: Any = None
    custom_logit_processor: Any = None
    session_params: Any = None

    def refuse_unsupported(self) -> None:
        for name in (
            "input_embeds", "image_data", "video_data", "audio_data", "lora_path",
            "token_ids_logprob", "return_hidden_states", "return_routed_experts",
            "custom_logit_processor", "session_params",
        ):  # fmt: skip
            if msgspec.structs.asdict(self)[name]:
                raise RequestError(
                    f"{name} is not supported; leave it out.",
                    code="unsupported_value",
                    param=name,
                )

    def prompts(self) -> tuple[list[str | list[int]], bool]:
        """The prompts, and whether they came as a list."""
        if (self.text is None) == (self.input_ids is None):
            raise RequestError("give either text or input_ids.", param="text")
        if isinstance(self.text, str):
            return [self.text], False
        if self.text is not None:
            return _not_empty(list(self.text), "text"), True
        ids = _not_empty(self.input_ids or [], "input_ids")
        try:
            if isinstance(ids[0], list):
                return list(msgspec.convert(ids, list[list[TokenId]])), True
            return [msgspec.convert(ids, list[TokenId])], False
        except msgspec.ValidationError as e:
            raise RequestError(
                f"input_ids must be token ids or lists of them: {e}.", param="input_ids"
            ) from e


class Wish(Struct, frozen=True):
    """What one prompt of the request asks to be shown.

    name: its rid. logprobs: likeliest tokens to show beside each, -1 for none at all. start: the
    prompt's first token with a log probability, -1 for none.
    """

    name: str
    body: CompletionRequest
    logprobs: int
    start: int
    limited: bool


def wishes(body: NativeRequest, request_id: str) -> tuple[list[Wish], bool]:
    """One for each prompt, and whether the answer is a list. RequestError names the field."""
    body.refuse_unsupported()
    prompts, batch = body.prompts()
    count = len(prompts)
    if count > MAX_SEQUENCES:
        raise RequestError(
            f"{count} prompts; at most {MAX_SEQUENCES} are taken in one request.",
            code="too_many_prompts",
            param="text" if body.input_ids is None else "input_ids",
        )
    params = _each(body.sampling_params or {}, count, "sampling_params")
    wanted = _each(bool(body.return_logprob) if not isinstance(body.return_logprob, list)
                   else body.return_logprob, count, "return_logprob")  # fmt: skip
    starts = _each(_or(body.logprob_start_len, -1), count, "logprob_start_len")
    tops = _each(_or(body.top_logprobs_num, 0), count, "top_logprobs_num")
    names = _names(body.rid, count, request_id)
    out: list[Wish] = []
    for i, prompt in enumerate(prompts):
        logprobs = tops[i] if wanted[i] else -1
        start = starts[i] if wanted[i] else -1
        completion = _completion(body, prompt, params[i], logprobs, echo=start >= 0)
        limited = params[i].get("max_new_tokens", 0) is not None
        out.append(Wish(names[i], completion, logprobs, start, limited))
    if len({w.body.n or 1 for w in out}) > 1:
        raise RequestError("n must be the same for every prompt.", param="sampling_params")
    return out, batch or (out[0].body.n or 1) > 1


def _completion(
    body: NativeRequest,
    prompt: str | list[int],
    params: dict[str, Any],
    logprobs: int,
    echo: bool,
) -> CompletionRequest:
    given = [name for name in _CONSTRAINTS if params.get(name) is not None]
    if len(given) > 1:
        raise RequestError(
            f"sampling_params has {' and '.join(given)}; one of them can hold.",
            param="sampling_params",
        )
    for name in ("stop_regex", "beam_width"):
        if params.get(name):
            raise RequestError(
                f"sampling_params.{name} is not supported; leave it out.",
                code="unsupported_value",
                param="sampling_params",
            )
    fields: dict[str, Any] = {
        "prompt": prompt,
        "stream": body.stream,
        "priority": body.priority,
        "cache_salt": body.cache_salt or body.extra_key,
        "echo": echo,
        "logprobs": None if logprobs < 0 else logprobs,
    }
    for name in _SAME:
        fields[name] = params.get(name)
    for name, ours in _RENAMED.items():
        if params.get(name) is not None:
            fields[ours] = params[name]
    for name, usual in _USUAL.items():
        value = params.get(name)
        fields[name] = usual if value is None else value
    return convert_body(CompletionRequest, fields)


def _or(value: Any, default: int) -> Any:
    return default if value is None else value


def _each(value: Any, count: int, field: str) -> Sequence[Any]:
    """One value for each prompt: a list has its own for each."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise RequestError(f"{field} has {len(value)} entries for {count} prompts.", param=field)
    return value


def _names(rid: str | list[str] | None, count: int, request_id: str) -> Sequence[str]:
    if isinstance(rid, list):
        names = list(_each(rid, count, "rid"))
    elif rid is None and count == 1:
        names = [request_id]
    else:
        names = [f"{rid or request_id}_{i}" if count > 1 else str(rid) for i in range(count)]
    if not all(1 <= len(name) <= LONGEST_NAME for name in names):
        raise RequestError(
            f"a rid must have 1 to {LONGEST_NAME} characters.", code="invalid_value", param="rid"
        )
    return names


def _not_empty(values: list[Any], field: str) -> list[Any]:
    if not values:
        raise RequestError(f"{field} is an empty list.", param=field)
    return values
