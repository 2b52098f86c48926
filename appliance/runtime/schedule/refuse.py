"""Requests that can never run, told at once and with the numbers; also those already at their end.

The frontends check the same first; this is what keeps a wrong number from the device.
"""

from __future__ import annotations

from appliance.runtime.schedule.cache.cache import Cache
from appliance.runtime.schedule.request import Request
from appliance.runtime.wire.delta import TokenDelta

CRASHES = 2
"""Engine deaths after which a request is not tried again."""


def refusal(request: Request, context: int, vocab: int, cache: Cache) -> TokenDelta | None:
    """The only delta of a request that is not to be run, or None."""
    index = len(request.output)
    error = _error(request, context, vocab, cache)
    if error:
        return TokenDelta(request.rid, index, (), "error", error=error)
    if not index:
        return None
    last = request.output[-1]
    if request.stops_at(last, index - 1):
        return TokenDelta(request.rid, index, (), "stop", last)
    if index >= request.sampling.max_tokens or len(request.history) >= context:
        return TokenDelta(request.rid, index, (), "length")
    return None


def _error(request: Request, context: int, vocab: int, cache: Cache) -> str:
    prompt, history = len(request.prompt), request.history
    if request.wire.crashes >= CRASHES:
        return (
            f"Quarantined: the engine died {request.wire.crashes} times while this request was in "
            f"flight, so it is not tried again."
        )
    if not prompt:
        return "The prompt is empty; at least one token is needed."
    if prompt + 1 > context:
        return (
            f"The prompt has {prompt} tokens; with one token of output that is more than the "
            f"context of {context}."
        )
    if cache.pages_of(len(history)) > cache.total:
        return (
            f"{len(history)} tokens of prompt and output need {cache.pages_of(len(history))} cache "
            f"pages; the whole pool has {cache.total} (of {cache.page_size} tokens each)."
        )
    if int(history.min()) < 0 or int(history.max()) >= vocab:
        wrong = int(history.max() if history.max() >= vocab else history.min())
        return f"Token id {wrong} is outside the vocabulary of {vocab}."
    wrong_bias = [i for i, _ in request.sampling.logit_bias if not 0 <= i < vocab]
    if wrong_bias:
        return f"logit_bias names token {wrong_bias[0]}, outside the vocabulary of {vocab}."
    if request.sampling.max_tokens < 0:
        return f"max_tokens is {request.sampling.max_tokens}; it must be 0 or more."
    return ""
