"""SGLang's native routes against a served frontend."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, continuation
from served_frontend import Served
from sse_reader import events, expected, prompt_ids

from appliance.runtime.text.worker import TextWorker


def post(served: Served, path: str = "/generate", **body: Any) -> Any:
    answer = httpx.post(served.url + path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_generate(served: Served, engine: FakeEngine, text_room: TextWorker) -> None:
    engine.cached = 1
    answer = post(served, text="Hello", rid="mine", sampling_params={"max_new_tokens": 9})
    ids = prompt_ids(text_room, "Hello")
    assert answer["text"] == expected(text_room, "Hello", 9)
    assert answer["output_ids"] == continuation(ids, 9)
    meta = answer["meta_info"]
    assert meta["id"] == "mine" and meta["finish_reason"] == {"type": "length", "length": 9}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(ids), 9)
    assert meta["cached_tokens"] == 1 and meta["e2e_latency"] >= 0
    sampling = engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (1.0, 0, 9)


def test_the_length_that_nobody_asked_for(served: Served, engine: FakeEngine) -> None:
    post(served, text="Hello")
    assert engine.requests[-1].sampling.max_tokens == 128
    post(served, text="Hello", sampling_params={"max_new_tokens": None, "temperature": 0})
    assert engine.requests[-1].sampling.max_tokens > 400
    assert engine.requests[-1].sampling.temperature == 0.0


def test_a_stream_tells_the_text_so_far(served: Served, text_room: TextWorker) -> None:
    sent = {"text": "Hello", "stream": True, "sampling_params": {"max_new_tokens": 9}}
    chunks = events(httpx.post(f"{served.url}/generate", json=sent).text)
    texts = [c["text"] for c in chunks]
    assert texts[-1] == expected(text_room, "Hello", 9)
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    assert [c["meta_info"]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["meta_info"]["completion_tokens"] == len(chunks[-1]["output_ids"]) == 9


def test_batches_have_sampling_names_and_ids_of_their_own(
    served: Served, text_room: TextWorker
) -> None:
    ids = [prompt_ids(text_room, "Hello"), prompt_ids(text_room, "World, hi")]
    answers = post(
        served,
        input_ids=ids,
        rid=["a", "b"],
        sampling_params=[{"max_new_tokens": 3}, {"max_new_tokens": 5}],
    )
    assert [a["output_ids"] for a in answers] == [continuation(ids[0], 3), continuation(ids[1], 5)]
    assert [a["meta_info"]["id"] for a in answers] == ["a", "b"]
    assert [a["meta_info"]["prompt_tokens"] for a in answers] == [len(i) for i in ids]


def test_a_streamed_batch_says_whose_an_event_is(served: Served, text_room: TextWorker) -> None:
    sent = {"text": ["Hello", "World"], "stream": True, "sampling_params": {"max_new_tokens": 4}}
    chunks = events(httpx.post(f"{served.url}/generate", json=sent).text)
    last = {c["index"]: c["text"] for c in chunks}
    assert last == {0: expected(text_room, "Hello", 4), 1: expected(text_room, "World", 4)}


def test_choices_are_a_list(served: Served) -> None:
    answers = post(served, text="Hello", rid="r", sampling_params={"max_new_tokens": 2, "n": 2})
    assert [a["meta_info"]["id"] for a in answers] == ["r_0", "r_1"]


def test_logprobs(served: Served, text_room: TextWorker) -> None:
    ids = prompt_ids(text_room, "Hello, world")
    asked = {"text": "Hello, world", "sampling_params": {"max_new_tokens": 3}}
    meta = post(served, **asked, return_logprob=True)["meta_info"]
    assert meta["input_token_logprobs"] == []
    assert [e[1:] for e in meta["output_token_logprobs"]] == [
        [i, None] for i in continuation(ids, 3)
    ]
    meta = post(
        served, **asked, return_logprob=True, logprob_start_len=0, top_logprobs_num=2,
        return_text_in_logprobs=True,
    )["meta_info"]  # fmt: skip
    assert [e[1] for e in meta["input_token_logprobs"]] == ids
    assert meta["input_token_logprobs"][0][0] is None and meta["input_top_logprobs"][0] is None
    assert all(len(top) == 2 for top in meta["output_top_logprobs"])
    assert isinstance(meta["output_token_logprobs"][0][2], str)
    meta = post(served, **asked, return_logprob=True, logprob_start_len=2)["meta_info"]
    assert [e[1] for e in meta["input_token_logprobs"]] == ids[2:]


def test_what_ended_it(served: Served, engine: FakeEngine, text_room: TextWorker) -> None:
    engine.script = prompt_ids(text_room, "Hello there")
    answer = post(served, text="Hi", sampling_params={"stop": "there"})
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": "there"}
    answer = post(served, text="Hi")
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": 1}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "input_ids"),
        ({"text": []}, "text"),
        ({"input_ids": ["a"]}, "input_ids"),
        ({"input_ids": [[1], [-1]]}, "input_ids"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "temperature"),
        ({"text": "a", "sampling_params": [{}, {}]}, "sampling_params"),
        ({"text": ["a", "b"], "sampling_params": [{"n": 1}, {"n": 2}]}, "n must"),
        ({"text": "a", "sampling_params": {"regex": "a", "ebnf": "b"}}, "regex and ebnf"),
        ({"text": "a", "sampling_params": {"stop_regex": "a+"}}, "stop_regex"),
        ({"text": "a", "lora_path": "x"}, "lora_path"),
        ({"text": "a", "rid": ""}, "rid"),
        ({"text": "a", "sampling_params": {"max_new_tokens": 9999}}, "context"),
    ],
)
def test_errors(served: Served, wrong: Any, named: str) -> None:
    answer = httpx.post(f"{served.url}/generate", json=wrong)
    assert answer.status_code == 400 and named in answer.json()["error"]["message"]


def in_background(served: Served, **body: Any) -> tuple[threading.Thread, list[httpx.Response]]:
    got: list[httpx.Response] = []

    def send() -> None:
        got.append(httpx.post(f"{served.url}/generate", json=body, timeout=30))

    thread = threading.Thread(target=send)
    thread.start()
    return thread, got


def test_an_abort_gives_what_has_come(served: Served, engine: FakeEngine) -> None:
    engine.budget = 3
    thread, got = in_background(served, text="Hello", rid="me")
    served.until(lambda: any(r.output_tokens == 3 for r in served.frontend.rows()))
    assert httpx.post(f"{served.url}/abort_request", json={"rid": "m"}).status_code == 200
    assert served.frontend.live == 1, "a name is matched whole"
    httpx.post(f"{served.url}/abort_request", json={"rid": "me"})
    thread.join(20)
    meta = got[0].json()["meta_info"]
    assert got[0].status_code == 200 and meta["finish_reason"]["type"] == "abort"
    assert meta["completion_tokens"] == 3 and len(got[0].json()["output_ids"]) == 3
    engine.wait(lambda: len(engine.aborts) == 1)


def test_an_abort_reaches_the_other_frontends(
    engine: FakeEngine, serve: Callable[..., Served]
) -> None:
    engine.start()
    engine.hold.set()
    one, two = (serve(index=i, frontends=2).connected() for i in range(2))
    thread, got = in_background(one, text="Hello")
    engine.wait(lambda: bool(engine.requests))
    assert httpx.post(f"{two.url}/abort_request", json={"abort_all": True}).status_code == 200
    thread.join(20)
    assert got[0].json()["meta_info"]["finish_reason"]["type"] == "abort"


def test_an_abort_needs_a_name(served: Served) -> None:
    assert httpx.post(f"{served.url}/abort_request", json={}).status_code == 400


def test_what_clients_ask_about_the_server(served: Served, engine: FakeEngine) -> None:
    for old, new in (("/get_model_info", "/model_info"), ("/get_server_info", "/server_info")):
        answer = httpx.get(served.url + old).json()
        assert answer.keys() == httpx.get(served.url + new).json().keys()
        assert answer["served_model_name"] == "org/tiny"
    assert httpx.get(f"{served.url}/model_info").json()["is_generation"] is True
    assert len(httpx.get(f"{served.url}/server_info").json()["internal_states"]) == 1
    loads = httpx.get(f"{served.url}/v1/loads").json()
    assert loads["dp_rank_count"] == 1 and loads["loads"][0]["connected"] is True
    assert httpx.get(f"{served.url}/ping").status_code == 200


def test_health_generate_asks_an_engine(served: Served, engine: FakeEngine) -> None:
    assert httpx.get(f"{served.url}/health_generate").status_code == 200
    assert engine.requests[-1].sampling.max_tokens == 1
    engine.error = "broken."
    assert httpx.get(f"{served.url}/health_generate").status_code == 500
    served.set_state(state="draining")
    assert httpx.get(f"{served.url}/health_generate").status_code == 503


def test_the_cache_is_flushed(served: Served, engine: FakeEngine) -> None:
    for method in ("GET", "POST"):
        assert "flushed" in httpx.request(method, f"{served.url}/flush_cache").text
    engine.wait(lambda: engine.flushes == 2)


def test_a_client_that_leaves_ends_its_request(served: Served, engine: FakeEngine) -> None:
    engine.budget = 2
    sent = {"text": "Hello", "stream": True}
    with httpx.stream("POST", f"{served.url}/generate", json=sent) as stream:
        first = next(stream.iter_lines())
        assert json.loads(first.removeprefix("data: "))["meta_info"]["completion_tokens"] >= 1
    engine.wait(lambda: bool(engine.aborts))
