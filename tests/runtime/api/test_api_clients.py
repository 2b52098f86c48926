"""The real openai client against a served frontend."""

from __future__ import annotations

import asyncio

import openai
import pytest
from fake_engine import FakeEngine
from served_frontend import Served
from sse_reader import expected

from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.text import Chat

HI = [{"role": "user", "content": "Hi"}]


def client(served: Served, **options: object) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", **options)


def test_chat_without_and_with_a_stream(served: Served, text_room: TextWorker) -> None:
    want = expected(text_room, Chat(HI), 20)
    with client(served) as c:
        answer = c.chat.completions.create(model="default", messages=HI, max_tokens=20)
        assert answer.choices[0].message.content == want
        assert answer.usage is not None and answer.usage.completion_tokens == 20
        assert answer._request_id
        stream = c.chat.completions.create(
            model="org/tiny", messages=HI, max_tokens=20, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == want
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 20


def test_completions_and_models(served: Served, text_room: TextWorker) -> None:
    with client(served) as c:
        answer = c.completions.create(model="small", prompt="Hello", max_tokens=9, logprobs=2)
        assert answer.choices[0].text == expected(text_room, "Hello", 9)
        assert answer.choices[0].logprobs is not None
        assert [m.id for m in c.models.list()] == ["org/tiny", "small"]
        assert c.models.retrieve("org/tiny").id == "org/tiny"


def test_many_async_streams(served: Served, text_room: TextWorker) -> None:
    async def one(c: openai.AsyncOpenAI, i: int) -> str:
        messages = [{"role": "user", "content": f"Hi {i}"}]
        stream = await c.chat.completions.create(
            model="default", messages=messages, max_tokens=30, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as c:
            return await asyncio.gather(*(one(c, i) for i in range(16)))

    chats = [Chat([{"role": "user", "content": f"Hi {i}"}]) for i in range(16)]
    assert asyncio.run(all_of_them()) == [expected(text_room, c, 30) for c in chats]


def test_errors_become_the_clients_own(served: Served, engine: FakeEngine) -> None:
    with client(served) as c:
        with pytest.raises(openai.NotFoundError) as missing:
            c.chat.completions.create(model="gpt-9", messages=HI)
        assert missing.value.code == "model_not_found" and missing.value.request_id
        with pytest.raises(openai.BadRequestError) as bad:
            c.chat.completions.create(model="default", messages=HI, temperature=9)
        assert bad.value.param == "temperature"
        engine.error = "broken."
        with pytest.raises(openai.InternalServerError):
            c.chat.completions.create(model="default", messages=HI)
        assert len(engine.requests) == 1, "x-should-retry: false keeps the client from trying again"


def test_an_error_in_a_stream_is_raised(served: Served, engine: FakeEngine) -> None:
    engine.budget = 3
    with client(served) as c:
        stream = c.chat.completions.create(model="default", messages=HI, max_tokens=50, stream=True)
        with pytest.raises(openai.APIError, match="it broke"):
            for _ in stream:
                engine.error = "it broke."
                engine.budget = None


def test_the_client_tries_again_while_the_model_loads(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    served.set_state(state="draining")
    with client(served, max_retries=0) as c:
        with pytest.raises(openai.InternalServerError) as refused:
            c.completions.create(model="default", prompt="Hello")
    assert refused.value.status_code == 503
    assert refused.value.response.headers["x-should-retry"] == "true"
