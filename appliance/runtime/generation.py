"""What an engine in this process is asked, in our words or in those of SGLang's Engine, and what it
answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from appliance.errors import RequestError
from appliance.runtime.wire.delta import Finish
from appliance.runtime.wire.request import Grammar, GrammarKind
from appliance.runtime.wire.text import AskedSampling, TextDelta, TextLogprob

_OTHER_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_token_ids": "stop_ids",
    "sampling_seed": "seed",
}
_GRAMMARS: dict[str, GrammarKind] = {
    "json_schema": "json_schema",
    "regex": "regex",
    "ebnf": "ebnf",
    "structural_tag": "structural_tag",
}
_OF_THE_TEXT = ("stop", "skip_special_tokens", "no_stop_trim", "grammar", *_GRAMMARS)


@dataclass
class Generation:
    """One answer, so far or whole. finish_reason: stop or length. matched: stop id or string.

    Also read as SGLang's: ["text"], ["output_ids"], ["meta_info"].
    """

    text: str = ""
    """Without what ended it."""
    ids: list[int] = field(default_factory=list)
    """Output token ids, the stop id included."""
    finish_reason: Finish = ""
    """Empty while it grows."""
    matched: int | str | None = None
    """The stop id or the stop string that ended it, if one did."""
    prompt_tokens: int = 0
    """Tokens of the prompt."""
    cached_tokens: int = 0
    """Of them those that the prefix cache had."""
    logprobs: list[TextLogprob] = field(default_factory=list)
    """One for each output token, where they were asked for."""
    prompt_logprobs: list[TextLogprob] = field(default_factory=list)
    """One for each prompt token, where they were asked for."""

    def add(self, delta: TextDelta) -> None:
        """Grows by one delta."""
        self.text += delta.text
        self.ids += delta.ids
        self.logprobs += delta.logprobs
        self.prompt_logprobs += delta.prompt_logprobs
        if delta.cached >= 0:
            self.cached_tokens = delta.cached
        if delta.finish:
            self.finish_reason, self.matched = delta.finish, delta.matched

    def so_far(self) -> Generation:
        """A copy that does not grow."""
        return replace(
            self,
            ids=list(self.ids),
            logprobs=list(self.logprobs),
            prompt_logprobs=list(self.prompt_logprobs),
        )

    def __getitem__(self, name: str) -> Any:
        found = {"text": self.text, "output_ids": self.ids, "meta_info": self.meta_info}
        return found[name]

    def keys(self) -> Iterator[str]:
        """With __getitem__, what `dict(generation)` needs."""
        return iter(("text", "output_ids", "meta_info"))

    @property
    def meta_info(self) -> dict[str, Any]:
        """SGLang's: finish_reason, token counts, and log probabilities where asked for."""
        out: dict[str, Any] = {
            "finish_reason": self._finish_shown(),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.ids),
            "cached_tokens": self.cached_tokens,
        }
        for side, found in (("input", self.prompt_logprobs), ("output", self.logprobs)):
            if found:
                out[f"{side}_token_logprobs"] = [(p.logprob, p.id, p.text) for p in found]
                out[f"{side}_top_logprobs"] = [
                    [(value, id, text) for id, text, _, value in p.top] or None for p in found
                ]
        return out

    def _finish_shown(self) -> dict[str, Any] | None:
        if not self.finish_reason:
            return None
        if self.finish_reason == "length":
            return {"type": "length", "length": len(self.ids)}
        shown: dict[str, Any] = {"type": self.finish_reason}
        return shown if self.matched is None else shown | {"matched": self.matched}


@dataclass(frozen=True)
class Asked:
    """Of one prompt: how it is sampled, and what is done with its text."""

    sampling: AskedSampling
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    grammar: Grammar | None = None


def asked_of(given: Mapping[str, Any]) -> Asked:
    """RequestError that names the field that is unknown or wrong."""
    values = {_OTHER_NAMES.get(name, name): value for name, value in given.items()}
    text = {name: values.pop(name) for name in _OF_THE_TEXT if name in values}
    if values.get("top_k") == -1:
        values["top_k"] = 0
    unknown = sorted(set(values) - set(AskedSampling.__struct_fields__))
    if unknown:
        raise RequestError(f"sampling has no field {unknown[0]!r}.", param=unknown[0])
    try:
        sampling = msgspec.convert(values, AskedSampling, strict=True)
    except msgspec.ValidationError as e:
        raise RequestError(f"sampling: {e}") from e
    stop = text.get("stop") or ()
    return Asked(
        sampling,
        (stop,) if isinstance(stop, str) else tuple(stop),
        bool(text.get("no_stop_trim", False)),
        text.get("skip_special_tokens", True) is not False,
        _grammar(text),
    )


def _grammar(text: Mapping[str, Any]) -> Grammar | None:
    found = [name for name in ("grammar", *_GRAMMARS) if text.get(name) is not None]
    if len(found) > 1:
        raise RequestError(f"{found[0]} and {found[1]} exclude each other.", param=found[1])
    if not found:
        return None
    value = text[found[0]]
    if isinstance(value, Grammar):
        return value
    if found[0] == "grammar":
        raise RequestError("grammar is no Grammar.", param="grammar")
    if not isinstance(value, str):
        value = msgspec.json.encode(value).decode()
    return Grammar(kind=_GRAMMARS[found[0]], source=value)


def with_logprobs(
    sampling: Mapping[str, Any], wanted: bool, start: int, top: int
) -> Mapping[str, Any]:
    """SGLang's return_logprob, logprob_start_len and top_logprobs_num as fields of ours."""
    if not wanted:
        return sampling
    out = {**sampling, "logprobs": top}
    return out | {"prompt_logprobs": top} if start >= 0 else out


def per_prompt(
    sampling: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, prompts: int
) -> list[Mapping[str, Any]]:
    """One for each prompt. RequestError when there are not as many."""
    if sampling is None or isinstance(sampling, Mapping):
        return [sampling or {}] * prompts
    if len(sampling) != prompts:
        raise RequestError(
            f"{len(sampling)} sampling_params for {prompts} prompts.", param="sampling_params"
        )
    return list(sampling)


def joined(
    query: str | Sequence[int], items: Sequence[str] | Sequence[Sequence[int]], item_first: bool
) -> list[str | tuple[int, ...]]:
    """The prompts of a scoring: query and items are texts, or ids. RequestError when mixed."""
    out: list[str | tuple[int, ...]] = []
    for item in items:
        if isinstance(query, str) and isinstance(item, str):
            out.append(item + query if item_first else query + item)
        elif not isinstance(query, str) and not isinstance(item, str):
            out.append((*item, *query) if item_first else (*query, *item))
        else:
            raise RequestError("query and items are all texts or all token ids.", param="items")
    return out
