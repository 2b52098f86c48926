"""The requests of lm-eval's `local-completions`, and its reading of the answers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from stand import Stand


def ask(served: Stand, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ids_of(served: Stand, text: str) -> list[int]:
    url = f"{served.url}/tokenize"
    ids: list[int] = httpx.post(url, json={"prompt": text, "add_special_tokens": False}).json()[
        "tokens"
    ]
    return ids


def read(whole: dict[str, Any], lengths: list[int]) -> list[tuple[float, bool]]:
    """As the harness does: (sum of the continuation's log probabilities, is it greedy), the one
    token that was generated left out. lengths: of each context."""
    out: list[tuple[float, bool]] = []
    for choice, start in zip(
        sorted(whole["choices"], key=lambda c: int(c["index"])), lengths, strict=True
    ):
        values = choice["logprobs"]["token_logprobs"][start:-1]
        tops = choice["logprobs"]["top_logprobs"][start:-1]
        greedy = all(v == max(top.values()) for v, top in zip(values, tops, strict=True))
        out.append((sum(values), greedy))
    return out


def test_loglikelihood(served: Stand) -> None:
    """prompt: a list of id lists; echo, logprobs 1, max_tokens 1."""
    contexts = [ids_of(served, text) for text in ("Once upon a time", "The capital of France is")]
    made = ask(
        served, model="default", prompt=contexts, max_tokens=6, temperature=0, logprobs=1,
        return_token_ids=True, ignore_eos=True,
    )  # fmt: skip
    choices = sorted(made["choices"], key=lambda c: int(c["index"]))
    likely = [c["token_ids"] for c in choices]
    unlikely = [[*ids[:-1], ids[-1] ^ 1] for ids in likely]
    whole = ask(
        served,
        model="default",
        prompt=[c + more for more_of in (likely, unlikely)
                for c, more in zip(contexts, more_of, strict=True)],
        temperature=0,
        max_tokens=1,
        logprobs=1,
        seed=1234,
        echo=True,
    )  # fmt: skip
    lengths = [len(c) for c in contexts] * 2
    told = read(whole, lengths)
    for (value, greedy), choice in zip(told[:2], choices, strict=True):
        assert greedy
        assert value == pytest.approx(sum(choice["logprobs"]["token_logprobs"]), abs=1e-3)
    for (value, greedy), (best, _) in zip(told[2:], told[:2], strict=True):
        assert not greedy and value < best
    for choice, context in zip(whole["choices"], contexts * 2, strict=True):
        shown = choice["logprobs"]
        sizes = {len(shown[name]) for name in ("tokens", "token_logprobs", "top_logprobs")}
        assert sizes == {len(context) + 6 + 1}
        assert shown["token_logprobs"][0] is None


def test_generate_until(served: Stand) -> None:
    """prompt: one list of ids or a list of texts; stop strings and a seed."""
    body = {"model": "default", "max_tokens": 32, "temperature": 0, "stop": ["."], "seed": 1234}
    ids = ask(served, prompt=[ids_of(served, "Once upon a time")], **body)
    text = ask(served, prompt=["Once upon a time"], **body)
    assert ids["choices"][0]["text"] == text["choices"][0]["text"]
    assert "." not in text["choices"][0]["text"]


def test_remote_tokenizer(served: Stand) -> None:
    """What the harness asks when it has no tokenizer of its own."""
    facts = httpx.get(f"{served.url}/tokenizer_info").json()
    assert facts
    ids = ids_of(served, "Grüße")
    back = httpx.post(f"{served.url}/detokenize", json={"tokens": ids}).json()
    assert back["prompt"] == "Grüße"


def test_open_webui_finds_the_model(served: Stand) -> None:
    """Its discovery: any key, /v1/models; then a stream, of which it reads the usage
    in whichever chunk holds it."""
    headers = {"authorization": "Bearer none"}
    cards = httpx.get(f"{served.url}/v1/models", headers=headers).json()["data"]
    assert all({"id", "object", "created", "owned_by"} <= set(card) for card in cards)
    body = {
        "model": cards[0]["id"],
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    url = f"{served.url}/v1/chat/completions"
    lines = httpx.post(url, json=body, headers=headers, timeout=60).text.splitlines()
    data = [line for line in lines if line.startswith("data: ")]
    assert data[-1] == "data: [DONE]"
    assert any('"usage":{' in line for line in data)
