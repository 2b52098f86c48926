"""/v1/embeddings through the real client, and /encode; a generative model refuses."""

from __future__ import annotations

import httpx
import numpy as np
import openai
import pytest
from fake_engine import FakeEngine
from served_frontend import Served

from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.request import ids_from_bytes
from appliance.runtime.wire.text import Gives

BOS = 0
WANT = np.arange(1, 9) / np.linalg.norm(np.arange(1, 9))


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextWorker, "gives", Gives(pooling="last"))


@pytest.mark.usefixtures("embedder")
def test_the_real_client(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0)
    answer = client.embeddings.create(model="default", input=["Hello", "a longer text"])
    assert [d.index for d in answer.data] == [0, 1]
    assert all(np.allclose(d.embedding, WANT, atol=1e-6) for d in answer.data)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 3 + 13
    short = client.embeddings.create(
        model="default", input=[5, 6, 7], dimensions=3, encoding_format="float"
    )
    assert np.allclose(short.data[0].embedding, WANT[:3] / np.linalg.norm(WANT[:3]), atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="default", input="x", dimensions=9)
    client.close()


@pytest.mark.usefixtures("embedder")
@pytest.mark.parametrize(("keep", "left"), [(-1, 511), (100, 100), (None, None)])
def test_a_long_text_is_cut_as_vllms_bench_client_asks(
    served: Served, engine: FakeEngine, keep: int | None, left: int | None
) -> None:
    body = {"model": "default", "input": "word " * 700, "truncate_prompt_tokens": keep}
    answer = httpx.post(f"{served.url}/v1/embeddings", json=body)
    if left is None:
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        return
    assert answer.json()["usage"]["prompt_tokens"] == left
    assert ids_from_bytes(engine.requests[-1].prompt)[0] == BOS, "its first tokens are kept"


@pytest.mark.usefixtures("embedder")
def test_encode(served: Served) -> None:
    one = httpx.post(f"{served.url}/encode", json={"text": "Hello"}).json()
    assert np.allclose(one["embedding"], WANT, atol=1e-6)
    assert one["meta_info"]["prompt_tokens"] == 3
    many = httpx.post(f"{served.url}/encode", json={"input_ids": [[1, 2], [3]]}).json()
    assert [m["meta_info"]["prompt_tokens"] for m in many] == [2, 1]


@pytest.mark.usefixtures("embedder")
@pytest.mark.parametrize("body", [{}, {"input": []}, {"input": [1, "a"]}, {"input": 3},
                                  {"input": "x", "dimensions": 0},
                                  {"input": "x", "encoding_format": "int8"}])  # fmt: skip
def test_bad_input_is_named(served: Served, body: dict[str, object]) -> None:
    answer = httpx.post(f"{served.url}/v1/embeddings", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_generative_model_says_so(served: Served, engine: FakeEngine) -> None:
    answer = httpx.post(f"{served.url}/v1/embeddings", json={"input": "x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported_for_model"
    assert not engine.requests
