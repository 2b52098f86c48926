"""/classify, /v1/score and /v1/rerank in the words of both peers, on models of each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from fake_engine import FakeEngine
from served_frontend import Served

from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.request import ids_from_bytes
from appliance.runtime.wire.text import Gives

Made = Callable[..., None]
THREE = Gives(labels=("bad", "fair", "good"), text=False)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Says what the served model was made for."""
    return lambda gives: monkeypatch.setattr(TextWorker, "gives", gives)


@pytest.fixture
def serve_it(
    made: Made, engine: FakeEngine, serve: Callable[..., Served]
) -> Callable[[Gives], Served]:
    def start(gives: Gives) -> Served:
        made(gives)
        engine.start()
        return serve().connected()

    return start


def post(served: Served, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{served.url}{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(served: Served, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{served.url}{path}", json=body)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def softmax(values: list[float]) -> np.ndarray:
    told = np.exp(np.array(values))
    return told / told.sum()


def test_label_probabilities_in_sglangs_words(served: Served, engine: FakeEngine) -> None:
    told = post(
        served, "/v1/score", query="ab", items=["c", "def"], label_token_ids=[5, 9], model="small"
    )
    assert told["object"] == "scoring" and told["model"] == "small"
    assert told["usage"]["prompt_tokens"] == told["usage"]["total_tokens"]
    lengths = [len(ids_from_bytes(r.prompt)) for r in engine.requests]
    want = [[(i * 7 + n) % 90 / 100 + 0.05 for i in (5, 9)] for n in lengths]
    assert np.allclose(told["scores"], want, atol=1e-6)
    assert all(r.sampling.max_tokens == 0 for r in engine.requests)
    shares = post(
        served, "/score", query=[1, 2], items=[[3]], label_token_ids=[5, 9],
        apply_softmax=True, item_first=True, temperature=2.0,
    )["scores"][0]  # fmt: skip
    assert np.isclose(sum(shares), 1.0)
    last = engine.requests[-1]
    assert ids_from_bytes(last.prompt).tolist() == [3, 1, 2]
    assert last.sampling.pool == "labels" and last.sampling.temperature == 2.0


def test_their_prompts_are_counted(served: Served) -> None:
    told = post(served, "/v1/score", query="ab", items=["c", "def"], label_token_ids=[5])
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    [counted] = [line for line in lines if line.startswith("appliance_prompt_tokens_total")]
    assert float(counted.split()[-1]) == told["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "query"),
        ({"query": "x"}, "items"),
        ({"query": "x", "items": ["y"]}, "label_token_ids"),
        ({"query": "x", "items": ["y"], "label_token_ids": [400]}, "label_token_ids"),
        ({"query": "x", "items": [[1]], "label_token_ids": [1]}, "items"),
        ({"query": "x", "items": [], "label_token_ids": [1]}, "items"),
        ({"query": "x", "items": ["y"], "label_token_ids": [1], "return_token_logprobs": True},
         "return_token_logprobs"),
        ({"text_1": "x"}, "text_1"),
        ({"text_1": ["x", "y"], "text_2": ["z"]}, "text_2"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(served: Served, body: dict[str, Any], field: str) -> None:
    assert refused(served, "/v1/score", **body)["param"] == field


def test_a_model_that_writes_judges_documents(served: Served, engine: FakeEngine) -> None:
    told = post(
        served, "/rerank", query="who", documents=["a", {"text": "a longer one"}, "bb"], top_n=2
    )
    assert len(told["results"]) == 2
    scores = [r["relevance_score"] for r in told["results"]]
    assert scores == sorted(scores, reverse=True) and all(0 < s < 1 for s in scores)
    assert {"index", "relevance_score", "document"} == told["results"][0].keys()
    assert [len(r.sampling.labels) for r in engine.requests] == [2, 2, 2]
    bare = post(served, "/v1/rerank", query="who", documents=["a"], return_documents=False)
    assert "document" not in bare["results"][0] and bare["usage"]["total_tokens"] > 0


def test_a_model_that_writes_says_what_it_cannot(served: Served) -> None:
    for path, body in (
        ("/classify", {"input": "x"}),
        ("/v1/classify", {"text": "x"}),
        ("/score", {"text_1": "a", "text_2": "b"}),
    ):
        error = refused(served, path, **body)
        assert error["code"] == "unsupported_for_model" and "head" in error["message"]


def test_a_classifier_in_the_words_of_both(
    serve_it: Callable[[Gives], Served], engine: FakeEngine
) -> None:
    scores = [1.0, 2.0, 4.0]
    engine.vector = lambda prompt: scores
    served = serve_it(THREE)
    told = post(served, "/classify", input=["x", "y"])
    assert [d["index"] for d in told["data"]] == [0, 1]
    first = told["data"][0]
    assert (first["label"], first["num_classes"]) == ("good", 3)
    assert np.allclose(first["probs"], softmax(scores), atol=1e-6)
    plain = post(served, "/v1/classify", input="x", use_activation=False)["data"][0]
    assert np.allclose(plain["probs"], scores)
    native = post(served, "/classify", text="x")
    assert native["embedding"] == scores and native["meta_info"]["prompt_tokens"] == 2
    assert len(post(served, "/classify", input_ids=[[1], [2, 3]])) == 2
    assert post(served, "/v1/score", query="a", items=["b"])["scores"] == [scores]
    shares = post(served, "/v1/score", query="a", items=["b"], apply_softmax=True)["scores"][0]
    assert np.allclose(shares, softmax(scores), atol=1e-6)
    for path, body in (
        ("/score", {"text_1": "a", "text_2": "b"}),
        ("/v2/rerank", {"query": "a", "documents": ["b"]}),
    ):
        assert "3 classes" in refused(served, path, **body)["message"]


def test_a_head_of_one_class_compares_pairs(
    serve_it: Callable[[Gives], Served], engine: FakeEngine
) -> None:
    engine.vector = lambda prompt: [float(len(prompt) - 4)]
    served = serve_it(Gives(labels=("LABEL_0",), activation="sigmoid", text=False))
    data = post(served, "/score", text_1="ab", text_2=["c", "defg"])["data"]
    lengths = [len(ids_from_bytes(r.prompt)) for r in engine.requests]
    want = [1 / (1 + np.exp(4.0 - n)) for n in lengths]
    assert [d["object"] for d in data] == ["score", "score"]
    assert np.allclose([d["score"] for d in data], want, atol=1e-6)
    plain = post(served, "/score", queries="ab", documents="c", use_activation=False)["data"]
    assert plain[0]["score"] == lengths[0] - 4
    results = post(served, "/rerank", query="ab", documents=["c", "defg"])["results"]
    assert [r["index"] for r in results] == [1, 0]


def test_embeddings_are_compared_by_their_angle(
    serve_it: Callable[[Gives], Served], engine: FakeEngine
) -> None:
    engine.vector = lambda prompt: [float(len(prompt)), 1.0]
    served = serve_it(Gives(pooling="last"))
    data = post(served, "/v1/score", text_1=["a", "bbbb"], text_2=["a", "a"])["data"]
    assert len(engine.requests) == 2  # each text is embedded once
    one, other = (len(ids_from_bytes(r.prompt)) for r in engine.requests)
    angle = (one * other + 1) / np.hypot(one, 1) / np.hypot(other, 1)
    assert np.allclose([d["score"] for d in data], [1.0, angle], atol=1e-6)
    results = post(served, "/v1/rerank", query="a", documents=["bbbb", "a"])["results"]
    assert [r["index"] for r in results] == [1, 0]
    assert np.isclose(results[0]["relevance_score"], 1.0, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [{"query": "x"}, {"documents": ["x"]}, {"query": "", "documents": ["x"]},
     {"query": "x", "documents": []}, {"query": "x", "documents": [{"title": "y"}]},
     {"query": "x", "documents": ["y"], "top_n": -1}],
)  # fmt: skip
def test_bad_reranking_is_refused(served: Served, body: dict[str, Any]) -> None:
    assert refused(served, "/rerank", **body)["param"] in ("query", "documents", "top_n")
