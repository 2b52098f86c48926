"""Scores of the embedded default model, over the whole way from HTTP to the engine and back."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest
from stand import Stand

PROMPT = "Q: Is snow white? A:"


def post(served: Stand, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{served.url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_label_probabilities_are_those_of_generation(served: Stand) -> None:
    told = post(
        served,
        "/generate",
        text=PROMPT,
        sampling_params={"max_new_tokens": 1},
        return_logprob=True,
        top_logprobs_num=4,
    )["meta_info"]["output_top_logprobs"][0]
    ids = [id for _, id, _ in told]
    want = [math.exp(logprob) for logprob, _, _ in told]
    head, tail = PROMPT[:9], PROMPT[9:]
    plain = post(served, "/v1/score", query=head, items=[tail], label_token_ids=ids)["scores"][0]
    assert plain == pytest.approx(want, rel=1e-3)
    turned = post(
        served, "/v1/score", query=tail, items=[head], label_token_ids=ids, item_first=True,
        apply_softmax=True,
    )["scores"][0]  # fmt: skip
    assert turned == pytest.approx([w / sum(want) for w in want], rel=1e-3)


def test_documents_are_put_in_order(served: Stand) -> None:
    documents = ["It rains in Paris.", "A fox jumps.", "7 + 7 = 14"]
    told = post(served, "/v1/rerank", query="weather in Paris", documents=documents)
    scores = [r["relevance_score"] for r in told["results"]]
    assert sorted(scores, reverse=True) == scores and all(0 < s < 1 for s in scores)
    assert sorted(r["index"] for r in told["results"]) == [0, 1, 2]
    assert all(r["document"]["text"] == documents[r["index"]] for r in told["results"])
    first = post(served, "/v2/rerank", query="weather in Paris", documents=documents, top_n=1)
    assert first["results"][0]["index"] == told["results"][0]["index"]


def test_what_it_is_not_made_for_says_what_is(served: Stand) -> None:
    for path, body in (("/classify", {"input": "x"}), ("/v1/embeddings", {"input": "x"})):
        answer = httpx.post(f"{served.url}{path}", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "unsupported_for_model"
