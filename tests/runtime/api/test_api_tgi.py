"""The real client of Hugging Face's Text Generation Inference against a served frontend."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, continuation
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError
from served_frontend import Served
from sse_reader import expected, prompt_ids

from appliance.runtime.text.worker import TextWorker


@pytest.mark.parametrize("path", ["", "/generate"])
def test_text_generation(served: Served, text_room: TextWorker, path: str) -> None:
    c = InferenceClient(served.url + path)
    assert c.text_generation("Hello", max_new_tokens=9) == expected(text_room, "Hello", 9)
    answer = c.text_generation(
        "Hello", max_new_tokens=9, details=True, decoder_input_details=True, return_full_text=True
    )
    assert answer.generated_text == "Hello" + expected(text_room, "Hello", 9)
    ids = prompt_ids(text_room, "Hello")
    assert [t.id for t in answer.details.tokens] == continuation(ids, 9)
    assert [t.id for t in answer.details.prefill] == ids
    assert (answer.details.finish_reason, answer.details.generated_tokens) == ("length", 9)


@pytest.mark.parametrize("path", ["", "/generate_stream"])
def test_a_stream(served: Served, text_room: TextWorker, path: str) -> None:
    c = InferenceClient(served.url + path)
    want = expected(text_room, "Hello", 9)
    assert "".join(c.text_generation("Hello", max_new_tokens=9, stream=True)) == want
    events = list(c.text_generation("Hello", max_new_tokens=9, stream=True, details=True))
    assert [e.token.id for e in events] == continuation(prompt_ids(text_room, "Hello"), 9)
    assert [e.index for e in events] == list(range(1, 10))
    assert "".join(e.token.text for e in events) == events[-1].generated_text == want
    assert events[-1].details is not None and events[-1].details.finish_reason == "length"
    assert all(e.details is None for e in events[:-1])


def test_deltas_of_several_tokens(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    engine.chunk = 4
    c = InferenceClient(f"{served.url}/generate_stream")
    events = list(c.text_generation("Hello", max_new_tokens=10, stream=True, details=True))
    assert [e.token.id for e in events] == continuation(prompt_ids(text_room, "Hello"), 10)
    assert "".join(e.token.text for e in events) == expected(text_room, "Hello", 10)


def test_what_ended_it(served: Served, engine: FakeEngine, text_room: TextWorker) -> None:
    engine.script = prompt_ids(text_room, "Hello there")
    c = InferenceClient(f"{served.url}/generate")
    stopped = c.text_generation("Hi", stop=["there"], details=True)
    assert stopped.details.finish_reason == "stop_sequence"
    assert stopped.generated_text == "Hello there"
    ended = c.text_generation("Hi", details=True)
    assert ended.details.finish_reason == "eos_token" and ended.generated_text == "Hello there"
    assert ended.details.tokens[-1].special


def test_greedy_unless_asked(served: Served, engine: FakeEngine) -> None:
    c = InferenceClient(f"{served.url}/generate")
    c.text_generation("Hi", max_new_tokens=2)
    assert engine.requests[-1].sampling.temperature == 0.0
    c.text_generation("Hi", max_new_tokens=2, temperature=0.7, seed=5)
    assert engine.requests[-1].sampling.temperature == 0.7
    assert engine.requests[-1].sampling.seed == 5


def test_errors_in_its_shape(served: Served, engine: FakeEngine) -> None:
    sent: Any = {"inputs": "Hi", "parameters": {"temperature": -2}}
    for path in ("/", "/generate", "/generate_stream"):
        answer = httpx.post(served.url + path, json=sent)
        assert answer.status_code == 400 and answer.json()["error_type"] == "validation"
        assert "temperature" in answer.json()["error"]
    c = InferenceClient(f"{served.url}/generate")
    with pytest.raises(ValidationError, match="context"):
        c.text_generation("Hi", max_new_tokens=100_000)
    engine.budget = 3
    with httpx.stream("POST", f"{served.url}/generate_stream", json={"inputs": "Hi"}) as stream:
        lines: list[str] = []
        for line in stream.iter_lines():
            engine.error = "it broke."
            engine.budget = None
            lines += [line] if line else []
    assert json.loads(lines[-1].removeprefix("data:")) == {
        "error": "it broke.",
        "error_type": "generation",
    }


def test_info(served: Served) -> None:
    answer = httpx.get(f"{served.url}/info").json()
    assert answer["model_id"] == "org/tiny" and answer["max_total_tokens"] == 512
