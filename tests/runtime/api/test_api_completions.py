"""The completions and chat bodies without a stream, and the tokenizer's routes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, continuation
from served_frontend import Served
from sse_reader import expected, prompt_ids

from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.text import Chat

HI = [{"role": "user", "content": "Hi"}]


def complete(served: Served, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{served.url}/v1/completions", json=body, timeout=30)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def chat(served: Served, **body: Any) -> dict[str, Any]:
    response = httpx.post(
        f"{served.url}/v1/chat/completions", json={"messages": HI} | body, timeout=30
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("prompt", ["Hello", ["Hello"], [9, 8, 7], [[9, 8, 7]]])
def test_every_form_of_prompt(served: Served, text_room: TextWorker, prompt: Any) -> None:
    answer = complete(served, prompt=prompt, max_tokens=6)
    plain = prompt[0] if isinstance(prompt[0], list) else prompt
    plain = plain if isinstance(plain, str) or isinstance(plain[0], int) else plain[0]
    assert answer["choices"][0]["text"] == expected(text_room, plain, 6)
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")


def test_choices_are_numbered_prompt_by_prompt(served: Served, text_room: TextWorker) -> None:
    answer = complete(served, prompt=["Hello", "there"], n=2, max_tokens=6)
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    texts = [c["text"] for c in answer["choices"]]
    assert texts == [expected(text_room, p, 6) for p in ("Hello", "Hello", "there", "there")]
    usage = answer["usage"]
    prompts = sum(len(prompt_ids(text_room, p)) for p in ("Hello", "there"))
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompts, 24)


def test_defaults_of_the_two_routes(served: Served, engine: FakeEngine) -> None:
    complete(served, prompt="Hello")
    chat(served)
    completion, chatting = (r.sampling for r in engine.requests)
    assert completion.max_tokens == 16
    assert chatting.max_tokens == 512 - len(engine.requests[1].prompt) // 4
    assert (completion.temperature, completion.top_p, completion.top_k) == (0.25, 0.5, 7)


def test_everything_a_client_sends_reaches_the_engine(served: Served, engine: FakeEngine) -> None:
    complete(
        served, prompt="Hello", max_tokens=5, min_tokens=2, temperature=0.5, top_p=0.9, top_k=3,
        min_p=0.1, frequency_penalty=0.2, presence_penalty=-0.3, repetition_penalty=1.1, seed=-5,
        stop_token_ids=[9], ignore_eos=True, logit_bias={"7": -100}, priority=4, cache_salt="me",
        n=2, best_of=2, user="u", response_format={"type": "text"},
    )  # fmt: skip
    first, second = engine.requests
    s = first.sampling
    assert (s.max_tokens, s.min_tokens, s.temperature, s.top_p, s.top_k) == (5, 2, 0.5, 0.9, 3)
    assert (s.min_p, s.frequency_penalty, s.presence_penalty) == (0.1, 0.2, -0.3)
    assert (s.repetition_penalty, s.stop_ids, s.logit_bias) == (1.1, (9,), ((7, -100.0),))
    assert (first.priority, first.cache_key, first.crashes) == (4, "me", 0)
    assert second.sampling.seed == (s.seed + 1) % (1 << 63)


def test_max_completion_tokens_and_max_tokens(served: Served, engine: FakeEngine) -> None:
    chat(served, max_completion_tokens=3)
    chat(served, max_tokens=4)
    assert [r.sampling.max_tokens for r in engine.requests] == [3, 4]


def test_lm_evals_request_exactly(served: Served, text_room: TextWorker) -> None:
    """prompt = list of id lists, echo, logprobs 1, max_tokens 1; the first entry is null."""
    prompts = [prompt_ids(text_room, "Hello there"), prompt_ids(text_room, "naïve 東京")]
    answer = complete(
        served, model="default", prompt=prompts, temperature=0, max_tokens=1, logprobs=1,
        seed=1234, echo=True,
    )  # fmt: skip
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["tokens"]) == len(prompt) + 1
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        assert logprobs["token_logprobs"][1:] == [-0.25] * len(prompt)
        for token, top in zip(logprobs["tokens"][1:], logprobs["top_logprobs"][1:], strict=True):
            assert max(top, key=top.__getitem__) == token
        assert len(logprobs["text_offset"]) == len(prompt) + 1
        assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    assert answer["choices"][0]["text"].startswith("Hello there")
    assert answer["usage"]["completion_tokens"] == 2


def test_offsets_of_echoed_logprobs_find_their_tokens(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    engine.script = text_room._vocabulary.encode(" 東京 world", add_special_tokens=False)
    choice = complete(served, prompt="Hello there", max_tokens=30, logprobs=0, echo=True)[
        "choices"
    ][0]
    logprobs = choice["logprobs"]
    shown = [
        (token, offset)
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True)
        if not token.startswith(("bytes:", "<|"))
    ]
    assert len(shown) > 2
    assert all(choice["text"][at:].startswith(token) for token, at in shown)


def test_chat_logprobs(served: Served) -> None:
    choice = chat(served, max_tokens=3, logprobs=True, top_logprobs=2)["choices"][0]
    for entry in choice["logprobs"]["content"]:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert [t["logprob"] for t in entry["top_logprobs"]] == [-0.25, -1.25]
        assert entry["top_logprobs"][0]["token"] == entry["token"]
    assert chat(served, max_tokens=3)["choices"][0]["logprobs"] is None


def test_prompt_logprobs_in_vllms_shape(served: Served, text_room: TextWorker) -> None:
    ids = prompt_ids(text_room, "Hello")
    choice = complete(served, prompt="Hello", max_tokens=1, prompt_logprobs=1)["choices"][0]
    first, *rest = choice["prompt_logprobs"]
    assert first is None and len(rest) == len(ids) - 1
    for id, table in zip(ids[1:], rest, strict=True):
        assert table[str(id)]["logprob"] == -0.25 and table[str(id)]["rank"] == 1
    assert "prompt_logprobs" in chat(served, max_tokens=1, prompt_logprobs=0)


def test_a_chat_answer(served: Served, text_room: TextWorker) -> None:
    answer = chat(served, model="small", max_tokens=6, return_token_ids=True)
    choice = answer["choices"][0]
    assert answer["model"] == "small" and answer["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == expected(text_room, Chat(HI), 6)
    prompt = prompt_ids(text_room, Chat(HI))
    assert answer["prompt_token_ids"] == prompt
    assert choice["token_ids"] == continuation(prompt, 6)


def test_parts_of_a_message_are_joined_and_developers_are_systems(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    chat(served, messages=[{"role": "developer", "content": parts}], max_tokens=1)
    chat(served, messages=[{"role": "system", "content": "Hello\nthere"}], max_tokens=1)
    assert engine.requests[0].prompt == engine.requests[1].prompt


def test_a_stop_id_ends_and_is_counted(served: Served, engine: FakeEngine) -> None:
    engine.script = [40, 41]
    answer = complete(served, prompt="Hello", max_tokens=50)
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", 1)
    assert answer["usage"]["completion_tokens"] == 3
    assert "<|end|>" not in choice["text"]


def test_special_tokens_can_be_shown(served: Served, engine: FakeEngine) -> None:
    engine.script = [2, 3]
    assert complete(served, prompt="Hello")["choices"][0]["text"] == ""
    shown = complete(served, prompt="Hello", skip_special_tokens=False)["choices"][0]["text"]
    assert shown == "<|user|><|assistant|>"


def test_tokenize_and_back(served: Served, text_room: TextWorker) -> None:
    ids = prompt_ids(text_room, "Hello there")
    body = {"prompt": "Hello there", "return_token_strs": True}
    answer = httpx.post(f"{served.url}/tokenize", json=body).json()
    assert answer["tokens"] == ids and answer["count"] == len(ids)
    assert answer["max_model_len"] == 512 and len(answer["token_strs"]) == len(ids)
    bare = httpx.post(
        f"{served.url}/tokenize", json={"prompt": "Hello there", "add_special_tokens": False}
    ).json()
    assert bare["tokens"] == ids[1:]
    back = httpx.post(f"{served.url}/detokenize", json={"tokens": ids}).json()
    assert back == {"prompt": "<|bos|>Hello there"}
    chatted = httpx.post(f"{served.url}/tokenize", json={"messages": HI}).json()
    assert chatted["tokens"] == prompt_ids(text_room, Chat(HI))
    wrong = httpx.post(f"{served.url}/detokenize", json={"tokens": [10**6]})
    assert wrong.status_code == 400 and "1000000" in wrong.text
    assert httpx.post(f"{served.url}/tokenize", json={}).status_code == 400
    facts = httpx.get(f"{served.url}/tokenizer_info").json()
    assert facts["bos_token"] == "<|bos|>" and "chat_template" in facts
