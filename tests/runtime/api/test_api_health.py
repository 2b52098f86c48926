"""What is answered while the run starts, is degraded, drains or has failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from served_frontend import Served

ASK = {"prompt": "Hello", "max_tokens": 2}


def get(served: Served, path: str) -> httpx.Response:
    return httpx.get(served.url + path)


def statuses(served: Served) -> dict[str, int]:
    return {p: get(served, p).status_code for p in ("/health", "/readyz", "/livez", "/startupz")}


def ask(served: Served) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/completions", json=ASK)


def test_while_loading(serve: Callable[..., Served]) -> None:
    served = serve()
    served.set_state(state="starting", phase="load", progress=0.41, detail="3 of 8 files")
    assert statuses(served) == {"/health": 503, "/readyz": 503, "/livez": 200, "/startupz": 503}
    body = get(served, "/health").json()
    assert body == {"status": "loading", "phase": "load", "progress": 0.41}
    refused = ask(served)
    assert refused.status_code == 503 and refused.headers["x-should-retry"] == "true"
    assert int(refused.headers["retry-after"]) >= 1
    error = refused.json()["error"]
    assert error["code"] == "loading"
    assert "load, 41% (3 of 8 files)" in error["message"]


def test_while_loading_it_tells_what_is_left(serve: Callable[..., Served]) -> None:
    served = serve()
    served.set_state(state="starting", phase="load", progress=0.5, ready_at=time.time() + 100)
    body = get(served, "/health").json()
    assert 0 < body["remaining_s"] <= 100
    assert 0 < get(served, "/startupz").json()["remaining_s"] <= 100
    assert "load, 50%, about 2 min left." in ask(served).json()["error"]["message"]
    served.set_state(state="starting", phase="load", progress=0.5, ready_at=time.time() - 1)
    assert "remaining_s" not in get(served, "/health").json()


def test_models_and_pages_answer_at_any_time(serve: Callable[..., Served]) -> None:
    served = serve()
    cards = get(served, "/v1/models").json()["data"]
    assert [(c["id"], c["object"], c["max_model_len"]) for c in cards] == [
        ("org/tiny", "model", 512),
        ("small", "model", 512),
    ]
    assert get(served, "/v1/models/org/tiny").json()["id"] == "org/tiny"
    assert get(served, "/v1/models/default").json()["root"] == "org/tiny"
    missing = get(served, "/v1/models/nope")
    assert missing.status_code == 404 and "org/tiny, small, default" in missing.text
    for path in ("/", "/version", "/metrics", "/openapi.json", "/tokenizer_info"):
        assert get(served, path).status_code == 200, path
    assert httpx.head(served.url).status_code == 200
    assert httpx.post(f"{served.url}/tokenize", json={"prompt": "Hello"}).status_code == 200


def test_ready(served: Served) -> None:
    served.set_state(state="ready", phase="", progress=1.0, reached_ready=True)
    assert set(statuses(served).values()) == {200}
    assert get(served, "/health").json()["status"] == "ok"
    assert ask(served).status_code == 200


def test_an_engine_is_enough_before_the_state_file_says_so(served: Served) -> None:
    assert ask(served).status_code == 200


def test_ready_but_the_engine_is_away(served: Served, engine: FakeEngine) -> None:
    served.set_state(state="ready", reached_ready=True)
    engine.die()
    served.until(lambda: not served.frontend.engines[0].connected)
    assert get(served, "/health").json()["status"] == "degraded"
    assert get(served, "/readyz").status_code == 503
    assert get(served, "/livez").status_code == 200


@pytest.mark.parametrize("state", ["draining", "stopped"])
def test_draining(served: Served, state: Any) -> None:
    served.set_state(state=state, reached_ready=True)
    assert get(served, "/health").json()["status"] == "draining"
    assert get(served, "/readyz").status_code == 503
    refused = ask(served)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")


def test_failed(served: Served) -> None:
    served.set_state(state="failed", failure="GPU 0 fell off the bus", reached_ready=True)
    assert statuses(served) == {"/health": 503, "/readyz": 503, "/livez": 503, "/startupz": 200}
    assert "fell off" in get(served, "/health").json()["failure"]
    refused = ask(served)
    assert refused.status_code == 503 and refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert "GPU 0 fell off the bus" in refused.json()["error"]["message"]
    assert get(served, "/v1/models").status_code == 200
