"""Several hundred generated requests, whose answers have the openai library's fields and no other.

Every model of the library is read with unknown fields forbidden; what we add is named here.
"""

from __future__ import annotations

import random
from typing import Any

import httpx
import pydantic
import pytest
from openai.types import Completion, ModelDeleted
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.model import Model
from served_frontend import Served
from sse_reader import events

OURS: dict[str, frozenset[str]] = {
    "whole": frozenset({"prompt_logprobs", "prompt_token_ids"}),
    "choice": frozenset({"stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids"}),
    "message": frozenset({"reasoning", "reasoning_content"}),
    "model": frozenset({"root", "parent", "max_model_len"}),
}
"""What we add to OpenAI's shapes, all asked for by other servers' clients."""
REQUESTS = 320


def strict(kind: type[pydantic.BaseModel], data: Any) -> None:
    """Fails for a field that is missing, of another type, or unknown at any depth."""
    made = kind.model_validate(data, strict=True)
    _no_extras(made, kind.__name__)


def _no_extras(value: Any, at: str) -> None:
    if isinstance(value, pydantic.BaseModel):
        assert not value.model_extra, f"{at} has {sorted(value.model_extra or ())}"
        for name, _ in type(value).model_fields.items():
            _no_extras(getattr(value, name), f"{at}.{name}")
    elif isinstance(value, list):
        for one in value:
            _no_extras(one, at)


def without_ours(data: dict[str, Any], where: str) -> dict[str, Any]:
    out = {k: v for k, v in data.items() if k not in OURS[where]}
    if where == "whole":
        out["choices"] = [without_first_null(without_ours(c, "choice")) for c in data["choices"]]
    for name in ("message", "delta"):
        if where == "choice" and name in out:
            out[name] = without_ours(out[name], "message")
    return out


def without_first_null(choice: dict[str, Any]) -> dict[str, Any]:
    """Of an echoed prompt's first token there is no probability: OpenAI says null there, against
    the types of its own library."""
    logprobs = choice.get("logprobs") or {}
    if (logprobs.get("token_logprobs") or [0.0])[0] is not None:
        return choice
    return choice | {"logprobs": {k: v[1:] for k, v in logprobs.items()}}


def test_strict_is_strict() -> None:
    good = {"id": "m", "object": "model", "created": 1, "owned_by": "a"}
    strict(Model, good)
    for wrong in (good | {"x": 1}, good | {"created": "1"}, {"id": "m"}):
        with pytest.raises((AssertionError, pydantic.ValidationError)):
            strict(Model, wrong)
    with pytest.raises(pydantic.ValidationError):
        strict(ModelDeleted, {"id": "m", "deleted": 1, "object": "model"})


def sampling(r: random.Random) -> dict[str, Any]:
    """Each field is there or not; a value of each kind that the API names."""
    made: dict[str, Any] = {
        "max_tokens": r.randint(1, 12),
        "temperature": r.choice([0, 0.7, 2.0, None]),
        "top_p": r.choice([0.1, 1.0, 1]),
        "n": r.choice([1, 1, 2, 3]),
        "stop": r.choice([None, "e", ["a", "b"], []]),
        "seed": r.choice([0, -1, 1 << 62, None]),
        "frequency_penalty": r.choice([-2, 0.5]),
        "presence_penalty": r.choice([0, 1.5]),
        "logit_bias": r.choice([{}, {"7": 3}, None]),
        "user": "u",
        "stream": r.choice([True, False, False]),
        "top_k": r.choice([-1, 0, 5]),
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": r.choice([0, 1]),
        "ignore_eos": r.choice([True, False]),
        "stop_token_ids": [9],
        "skip_special_tokens": r.choice([True, False]),
        "return_token_ids": r.choice([True, False]),
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
    }
    kept = {k: v for k, v in made.items() if k in ("max_tokens", "stream") or r.random() < 0.4}
    if kept["stream"] and r.random() < 0.6:
        kept["stream_options"] = {"include_usage": r.choice([True, False])}
        if r.random() < 0.3:
            kept["stream_options"]["continuous_usage_stats"] = True
    return kept


def chat(r: random.Random) -> dict[str, Any]:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]
    messages = [{"role": "user", "content": r.choice(["Hi", "é 你 🦆", "", parts])}]
    if r.random() < 0.3:
        messages.insert(0, {"role": r.choice(["system", "developer"]), "content": "Be brief."})
    body = {"model": "default", "messages": messages, **sampling(r)}
    if r.random() < 0.4:
        body["logprobs"] = True
        body["top_logprobs"] = r.choice([0, 1, 5])
    if not body["stream"] and r.random() < 0.1:
        body["prompt_logprobs"] = 1
    if r.random() < 0.3:
        body["max_completion_tokens"] = body.pop("max_tokens")
    return body


def completion(r: random.Random) -> dict[str, Any]:
    prompts = ["Hello", ["a", "b"], [1, 2, 3], [[1, 2], [3]], "é 你 🦆"]
    body = {"model": "small", "prompt": r.choice(prompts), **sampling(r)}
    if r.random() < 0.4:
        body["logprobs"] = r.choice([0, 1, 5])
    if r.random() < 0.3:
        body["echo"] = r.choice([True, False])
    return body


def check_stream(kind: type[pydantic.BaseModel], text: str, body: dict[str, Any]) -> None:
    assert text.endswith("data: [DONE]\n\n")
    chunks = events(text)
    for chunk in chunks:
        shown = without_ours(chunk, "whole")
        if kind is Completion:  # its streams are null until the end, which its type does not say
            for choice in shown["choices"]:
                choice["finish_reason"] = choice["finish_reason"] or "stop"
        strict(kind, shown)
    assert len({c["id"] for c in chunks}) == 1
    wanted = bool((body.get("stream_options") or {}).get("include_usage"))
    assert (chunks[-1]["choices"] == [] and chunks[-1]["usage"] is not None) == wanted
    finishes = [c["finish_reason"] for k in chunks for c in k["choices"] if c["finish_reason"]]
    assert set(finishes) <= {"stop", "length"}


@pytest.mark.parametrize("part", range(8))
def test_answers_have_the_librarys_shape(served: Served, part: int) -> None:
    r = random.Random(part)
    with httpx.Client(base_url=served.url, timeout=30) as client:
        for _ in range(REQUESTS // 8):
            is_chat = r.random() < 0.6
            body = chat(r) if is_chat else completion(r)
            path = "/v1/chat/completions" if is_chat else "/v1/completions"
            answer = client.post(path, json=body)
            assert answer.status_code == 200, (body, answer.text)
            if body["stream"]:
                kind = ChatCompletionChunk if is_chat else Completion
                check_stream(kind, answer.text, body)
            else:
                whole = ChatCompletion if is_chat else Completion
                strict(whole, without_ours(answer.json(), "whole"))


def test_models_have_the_librarys_shape(served: Served) -> None:
    listed = httpx.get(f"{served.url}/v1/models").json()
    assert set(listed) == {"object", "data"} and listed["object"] == "list"
    for card in listed["data"]:
        strict(Model, without_ours(card, "model"))
        one = httpx.get(f"{served.url}/v1/models/{card['id']}").json()
        strict(Model, without_ours(one, "model"))
