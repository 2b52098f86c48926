"""The death of an engine is a pause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
from fake_engine import FakeEngine, continuation
from served_frontend import Served
from sse_reader import events, expected, prompt_ids

from appliance import paths
from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.request import ids_from_bytes

TOKENS = 120


async def ask(client: httpx.AsyncClient, url: str, prompt: str) -> str:
    body = {"prompt": prompt, "max_tokens": TOKENS, "stream": True, "temperature": 0}
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        chunks = events((await response.aread()).decode())
    assert "error" not in chunks[-1], chunks[-1]
    return "".join(c["text"] for chunk in chunks for c in chunk["choices"])


def test_32_streams_go_on_with_the_next_token(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    prompts = [f"Hello {i}" for i in range(32)]
    engine.budget = 32 * 20 + 7
    engine.hold.set()

    async def everything() -> list[str]:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=64)) as client:
            asked = [asyncio.create_task(ask(client, served.url, p)) for p in prompts]
            await asyncio.to_thread(engine.wait, lambda: len(engine.requests) == 32)
            engine.hold.clear()
            await asyncio.to_thread(engine.wait, lambda: engine.budget == 0)
            engine.die()
            engine.budget = None
            engine.start()
            return await asyncio.gather(*asked)

    texts = asyncio.run(everything())
    assert texts == [expected(text_room, p, TOKENS) for p in prompts]
    again = engine.requests[32:]
    assert len(again) == 32
    for request in again:
        prompt = ids_from_bytes(request.prompt).tolist()
        output = ids_from_bytes(request.output).tolist()
        assert output == continuation(prompt, len(output))
        assert request.crashes == 1
    assert sum(len(r.output) // 4 for r in again) == 32 * 20 + 7
    series = served.frontend.series
    assert series.generated.series["org/tiny"] == 32 * TOKENS
    assert series.replays.series["org/tiny"] == 32


def test_tokens_told_twice_count_once(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    engine.repeat = True
    body = {"prompt": "Hello", "max_tokens": 30}
    answer = httpx.post(f"{served.url}/v1/completions", json=body).json()
    assert answer["choices"][0]["text"] == expected(text_room, "Hello", 30)
    assert answer["usage"]["completion_tokens"] == 30


def test_a_request_that_two_deaths_met_ends_with_one_error(
    served: Served, engine: FakeEngine
) -> None:
    engine.budget = 5
    with httpx.stream(
        "POST",
        f"{served.url}/v1/completions",
        json={"prompt": "Hello", "max_tokens": 50, "stream": True},
        timeout=30,
    ) as response:
        for deaths in (1, 2):
            engine.wait(lambda deaths=deaths: len(engine.requests) == deaths)
            served.until(
                lambda: (
                    all(live.in_flight for live in served.frontend._live.values())
                    and served.frontend.live == 1
                )
            )
            engine.die()
            engine.budget = 5
            engine.start()
        chunks = events(response.read().decode())
    assert chunks[-1]["error"]["code"] == "request_quarantined"
    assert [r.crashes for r in engine.requests] == [0, 1]
    assert served.frontend.live == 0


def test_engines_that_end_on_purpose_are_not_held_against_a_request(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    engine.budget = 5
    with httpx.stream(
        "POST",
        f"{served.url}/v1/completions",
        json={"prompt": "Hello", "max_tokens": 20, "stream": True},
        timeout=30,
    ) as response:
        for starts in (1, 2, 3):
            engine.wait(lambda starts=starts: len(engine.requests) == starts)
            served.until(lambda: all(v.in_flight for v in served.frontend._live.values()))
            engine.die(goodbye=True)
            engine.budget = 30 if starts == 3 else 5
            engine.start()
        chunks = events(response.read().decode())
    assert "".join(c["choices"][0]["text"] for c in chunks) == expected(text_room, "Hello", 20)
    assert [r.crashes for r in engine.requests] == [0, 0, 0, 0]


def test_a_request_that_was_only_waiting_is_not_blamed(
    run_dir: Path, engine: FakeEngine, serve: Callable[..., Served], text_room: TextWorker
) -> None:
    served = serve()
    served.set_state(state="degraded", reached_ready=True)

    async def both() -> httpx.Response:
        async with httpx.AsyncClient(timeout=30) as client:
            body = {"prompt": "Hello", "max_tokens": 5}
            asked = asyncio.create_task(client.post(f"{served.url}/v1/completions", json=body))
            await asyncio.to_thread(served.until, lambda: served.frontend.live == 1)
            engine.start()
            return await asked

    answer = asyncio.run(both())
    assert answer.json()["choices"][0]["text"] == expected(text_room, "Hello", 5)
    assert [(r.crashes, r.output) for r in engine.requests] == [(0, b"")]


def test_waiting_requests_end_when_the_run_fails(
    engine: FakeEngine, serve: Callable[..., Served]
) -> None:
    served = serve()
    served.set_state(state="degraded", reached_ready=True)

    async def both() -> httpx.Response:
        async with httpx.AsyncClient(timeout=30) as client:
            body = {"prompt": "Hello", "max_tokens": 5, "stream": True}
            asked = asyncio.create_task(client.post(f"{served.url}/v1/completions", json=body))
            await asyncio.to_thread(served.until, lambda: served.frontend.live == 1)
            served.set_state(state="failed", failure="the GPU is lost", reached_ready=True)
            return await asked

    answer = asyncio.run(both())
    assert answer.status_code == 503 and answer.headers["x-should-retry"] == "false"
    assert "the GPU is lost" in answer.json()["error"]["message"]


def test_a_replayed_request_tells_its_prompts_logprobs_once(
    served: Served, engine: FakeEngine, text_room: TextWorker
) -> None:
    engine.budget = 4

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(timeout=30) as client:
            body = {"prompt": "Hello", "max_tokens": 12, "echo": True, "logprobs": 1}
            asked = asyncio.create_task(client.post(f"{served.url}/v1/completions", json=body))
            await asyncio.to_thread(engine.wait, lambda: len(engine.requests) == 1)
            served.until(lambda: any(len(v.output) == 4 for v in served.frontend._live.values()))
            engine.die()
            engine.budget = None
            engine.start()
            return await asked

    logprobs = asyncio.run(run()).json()["choices"][0]["logprobs"]
    prompt = prompt_ids(text_room, "Hello")
    assert len(logprobs["tokens"]) == len(prompt) + 12
    assert engine.requests[1].sampling.prompt_logprobs == -1


def test_two_engines_share_and_one_may_die(
    run_dir: Path, engine: FakeEngine, serve: Callable[..., Served], text_room: TextWorker
) -> None:
    other = FakeEngine(paths.engine_socket(run_dir, 1))
    try:
        engine.start()
        other.start()
        engine.hold.set()
        other.hold.set()
        served = serve(replicas=2).connected()

        async def run() -> list[str]:
            async with httpx.AsyncClient(timeout=30) as client:
                asked = [
                    asyncio.create_task(ask(client, served.url, f"Hello {i}")) for i in range(8)
                ]
                await asyncio.to_thread(
                    served.until, lambda: len(engine.requests) + len(other.requests) == 8
                )
                assert len(engine.requests) == len(other.requests) == 4
                other.die()
                other.hold.clear()
                other.start()
                engine.hold.clear()
                return await asyncio.gather(*asked)

        texts = asyncio.run(run())
        assert texts == [expected(text_room, f"Hello {i}", TOKENS) for i in range(8)]
        assert all(e.live_tokens == 0 for e in served.frontend.engines)
    finally:
        other.die()
