"""Real clients against the embedded default model: the OpenAI library, curl, our own commands."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import prometheus_client.parser
import pytest
from openai.types.chat import ChatCompletionMessageParam
from stand import Stand, until

SUM: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is 37 + 45?"}]


@pytest.fixture(scope="module")
def client(served: Stand) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as one:
        yield one


def curl(*words: str) -> str:
    done = subprocess.run(["curl", "-sS", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_openai_lists_the_model(client: openai.OpenAI) -> None:
    assert client.models.list().data[0].id == "appliance-default"
    assert client.models.retrieve("appliance-default").owned_by
    with pytest.raises(openai.NotFoundError, match="appliance-default"):
        client.chat.completions.create(model="gpt-4o", messages=SUM)


def test_openai_whole_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="default", messages=SUM, temperature=0)
    assert "82" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    two = client.chat.completions.create(
        model="default", messages=SUM, n=2, seed=5, logprobs=True, top_logprobs=2, max_tokens=4
    )
    assert [c.index for c in two.choices] == [0, 1]
    for choice in two.choices:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_openai_streams(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="default", messages=SUM, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="default",
            messages=SUM,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


async def test_openai_async(served: Stand) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-") as client:
        answer = await client.chat.completions.create(model="default", messages=SUM, temperature=0)
        stream = await client.chat.completions.create(
            model="default", messages=SUM, temperature=0, stream=True
        )
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert text == answer.choices[0].message.content
    assert "82" in text


def test_curl(served: Stand) -> None:
    asked = {"model": "default", "messages": SUM, "temperature": 0}
    url = f"{served.url}/v1/chat/completions"
    words = ["-H", "Content-Type: application/json", "-d"]
    whole = json.loads(curl(url, *words, json.dumps(asked)))
    assert "82" in whole["choices"][0]["message"]["content"]
    events = curl("-N", url, *words, json.dumps(asked | {"stream": True})).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(e.removeprefix("data: ")) for e in events[:-2]]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/startupz", "/version"])
def test_curl_looks_at_it(served: Stand, path: str) -> None:
    assert curl("-o", "/dev/null", "-w", "%{http_code}", served.url + path) == "200"


def test_tokens_there_and_back(served: Stand) -> None:
    text = "Grüße from the appliance"
    there = httpx.post(f"{served.url}/tokenize", json={"prompt": text}).json()
    assert there["count"] == len(there["tokens"])
    back = httpx.post(f"{served.url}/detokenize", json={"tokens": there["tokens"]}).json()
    assert back["prompt"] == text


def test_metrics_parse(served: Stand, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="default", messages=SUM, temperature=0)
    text = httpx.get(f"{served.url}/metrics").text
    families = {
        family.name: family
        for family in prometheus_client.parser.text_string_to_metric_families(text)
    }
    for name in ("appliance_generation_tokens", "vllm:generation_tokens"):
        assert sum(s.value for s in families[name].samples if s.name.endswith("_total")) > 0, name
    assert families["vllm:time_to_first_token_seconds"].type == "histogram"


def test_hello_gets_a_sentence(served: Stand) -> None:
    said = served.cli("chat", "hello")
    assert said.returncode == 0, said.stderr
    assert len(said.stdout.split()) >= 2
    assert "\ufffd" not in said.stdout


def test_chat_adds(served: Stand) -> None:
    said = served.cli("chat", "What is 37 + 45?", "--temperature", "0")
    assert said.returncode == 0, said.stderr
    assert "82" in said.stdout


def test_bench_serve(served: Stand, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    said = served.cli(
        *("bench", "serve", "--dataset", "fixed:32,16", "--num-prompts", "8"),
        *("--max-concurrency", "4", "--processes", "1", "--append", str(record)),
    )
    assert said.returncode == 0, said.stderr
    figures = json.loads(record.read_text())
    assert figures["completed"] == 8


def test_a_client_that_leaves_gives_its_pages_back(served: Stand) -> None:
    asked = {"prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    url = f"{served.url}/v1/completions"
    with httpx.stream("POST", url, json=asked, timeout=30) as response:
        text = response.iter_text()  # closes the connection when it is let go
        assert next(text)
        until(lambda: [r.max_tokens for r in served.top().requests] == [1900], "it is shown alone")
        until(lambda: served.top().kv["used_tokens"] > 0, "its pages are in use")
    until(lambda: served.top().kv["used_tokens"] == 0, "its pages are free", 10)
    until(lambda: served.top().queue["running"] == 0 and not served.top().requests, "it is gone")


def test_the_light_processes_are_light(served: Stand) -> None:
    light = {p.role: p.memory_bytes for p in served.status().processes if p.role != "engine"}
    assert set(light) == {"supervisor", "frontend"}
    assert all(0 < (size or 0) <= 150 << 20 for size in light.values()), light


def test_top_once_shows_it(served: Stand) -> None:
    assert served.cli_json("top", "--once")["state"] == "ready"
    shown = served.cli("top", "--once")
    assert shown.returncode == 0
    assert "appliance-default" in shown.stdout
