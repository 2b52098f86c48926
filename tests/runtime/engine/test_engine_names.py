"""The engine in process by SGLang's names, beside our own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import appliance
from appliance.errors import RequestError, UsageError
from appliance.runtime.generation import asked_of
from appliance.runtime.offline import Engine
from appliance.runtime.wire.request import Grammar

PROMPT = "Once upon a time"
GREEDY = {"temperature": 0, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = appliance.Engine(settings={"engine.max_total_tokens": 4096})
    yield made
    made.shutdown()


def test_both_faces_say_the_same(engine: Engine) -> None:
    ours = engine.generate(PROMPT, {"temperature": 0.0, "max_tokens": 8})
    out = engine.generate(prompt=PROMPT, sampling_params=GREEDY)
    assert not isinstance(out, list)
    assert out["text"] == ours.text and out["output_ids"] == ours.ids
    meta = out["meta_info"]
    assert meta["completion_tokens"] == 8 and meta["prompt_tokens"] == ours.prompt_tokens
    assert meta["finish_reason"] == {"type": "length", "length": 8}
    assert set(dict(out)) == {"text", "output_ids", "meta_info"}


def test_several_prompts_each_with_its_own(engine: Engine) -> None:
    outs = engine.generate([PROMPT, "Hello"], [GREEDY, {**GREEDY, "max_new_tokens": 3}])
    assert [o["meta_info"]["completion_tokens"] for o in outs] == [8, 3]
    ids = engine.generate(prompt=PROMPT, sampling_params=GREEDY)["output_ids"]  # type: ignore[index,call-overload]
    again = engine.generate(input_ids=[ids, ids[:2]], sampling_params=GREEDY)
    assert isinstance(again, list) and [a.prompt_tokens for a in again] == [8, 2]
    one = engine.generate(input_ids=ids, sampling_params=GREEDY)
    assert not isinstance(one, list) and one.ids == again[0].ids


def test_stream_grows(engine: Engine) -> None:
    whole = engine.generate(PROMPT, GREEDY)
    seen = list(engine.generate(prompt=PROMPT, sampling_params=GREEDY, stream=True))
    assert seen[-1] == whole or seen[-1].ids == whole.ids
    lengths = [len(s.ids) for s in seen]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_logprobs(engine: Engine) -> None:
    out = engine.generate(
        prompt=PROMPT, sampling_params=GREEDY,
        return_logprob=True, logprob_start_len=0, top_logprobs_num=2,
    )  # fmt: skip
    assert not isinstance(out, list)
    meta = out["meta_info"]
    assert [id for _, id, _ in meta["output_token_logprobs"]] == out["output_ids"]
    assert all(len(top) == 2 for top in meta["output_top_logprobs"])
    assert meta["input_token_logprobs"][0][0] is None
    assert len(meta["input_token_logprobs"]) == meta["prompt_tokens"]


async def test_async_by_both_names(engine: Engine) -> None:
    first, second = await asyncio.gather(
        engine.async_generate(PROMPT, GREEDY),
        engine.async_generate(prompt=PROMPT, sampling_params=GREEDY),
    )
    assert first.ids == second.ids and len(first.ids) == 8
    last = None
    async for last in await engine.async_generate(PROMPT, GREEDY, stream=True):
        assert last.ids == first.ids[: len(last.ids)]
    assert last is not None and last["text"] == first.text


def test_what_cannot_be_asked(engine: Engine) -> None:
    with pytest.raises(UsageError, match="generative"):
        engine.encode(PROMPT)
    with pytest.raises(RequestError, match="one of prompt"):
        engine.generate(PROMPT, prompt=PROMPT)  # type: ignore[call-overload]
    with pytest.raises(RequestError, match="one of prompt"):
        engine.generate()
    with pytest.raises(RequestError, match="2 sampling_params for 1"):
        engine.generate([PROMPT], [GREEDY, GREEDY])
    with pytest.raises(RequestError, match="one prompt"):
        engine.generate([PROMPT], stream=True)  # type: ignore[call-overload]
    with pytest.raises(RequestError, match="no field 'warmth'"):
        engine.generate(PROMPT, {"warmth": 1})


def test_fields_that_have_other_names() -> None:
    asked = asked_of(
        {"max_new_tokens": 3, "top_k": -1, "stop": "x", "stop_token_ids": [1], "sampling_seed": 7}
    )
    assert (asked.sampling.max_tokens, asked.sampling.top_k, asked.sampling.seed) == (3, 0, 7)
    assert asked.stop == ("x",) and asked.sampling.stop_ids == (1,)
    assert asked_of({"regex": "a+"}).grammar == Grammar(kind="regex", source="a+")
    assert asked_of({"json_schema": {"type": "object"}}).grammar == Grammar(
        kind="json_schema", source='{"type":"object"}'
    )
    with pytest.raises(RequestError, match="exclude"):
        asked_of({"regex": "a", "ebnf": "root ::= 'a'"})
