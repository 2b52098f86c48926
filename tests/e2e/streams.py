"""32 unlike requests, streamed at once by asyncio over plain sockets, and their whole answers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

SENTENCE = "Paris counts nine red apples while the engine writes a story about Monday to Anna"


@dataclass
class Choice:
    """One answer of a stream. logprobs: of each token, where asked for."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish: str = ""
    logprobs: list[float] = field(default_factory=list)

    def differs(self, right: Choice) -> str:
        """In words, or nothing. Log probabilities may differ by rounding."""
        if self.ids != right.ids:
            pairs = enumerate(zip(self.ids, right.ids, strict=False))
            shorter = min(len(self.ids), len(right.ids))
            place = next((i for i, (a, b) in pairs if a != b), shorter)
            return f"ids differ at {place}: {len(self.ids)} tokens, {len(right.ids)} are right"
        if (self.text, self.finish) != (right.text, right.finish):
            return f"{self.text[-40:]!r} ({self.finish}), not {right.text[-40:]!r} ({right.finish})"
        if len(self.logprobs) != len(right.logprobs):
            return f"{len(self.logprobs)} log probabilities, {len(right.logprobs)} are right"
        far = max(
            (abs(a - b) for a, b in zip(self.logprobs, right.logprobs, strict=True)), default=0
        )
        return f"a log probability is off by {far}" if far > 1e-3 else ""


@dataclass
class Answer:
    """choices by index. error: what the stream ended with instead of [DONE]."""

    choices: dict[int, Choice] = field(default_factory=dict)
    error: str = ""
    completion_tokens: int = 0

    def differs(self, right: Answer) -> str:
        if self.error:
            return f"error: {self.error}"
        if self.choices.keys() != right.choices.keys():
            return f"choices {sorted(self.choices)}, not {sorted(right.choices)}"
        if self.completion_tokens != sum(len(c.ids) for c in self.choices.values()):
            return f"usage says {self.completion_tokens} tokens"
        found = (self.choices[i].differs(right.choices[i]) for i in sorted(self.choices))
        return next(filter(None, found), "")


def bodies(seed: int, tokens: int, count: int = 32) -> list[dict[str, Any]]:
    """Greedy and seeded, short and long, some with n = 2, logprobs, penalties or stop strings.

    tokens: of the longest answers.
    """
    rng = random.Random(seed)
    out: list[dict[str, Any]] = []
    for i in range(count):
        words = rng.choices(SENTENCE.split(), k=rng.randint(1, 60))
        body: dict[str, Any] = {
            "prompt": f"{i}. {' '.join(words)}",
            "max_tokens": rng.randint(tokens // 3, tokens),
            "ignore_eos": True,
            "temperature": 0,
        }
        if i % 2:
            body |= {"temperature": rng.choice([0.5, 0.8, 1.0]), "seed": rng.randrange(1 << 40)}
            body |= {"top_p": rng.choice([1.0, 0.9])}
        if i % 8 == 3:
            body["n"] = 2
        if i % 4 == 2:
            body["logprobs"] = 2
        if i % 8 == 5:
            body |= {"frequency_penalty": 0.4, "repetition_penalty": 1.1}
        out.append(body)
    return out


def with_stops(asked: list[dict[str, Any]], right: list[Answer]) -> list[dict[str, Any]]:
    """The requests, every sixth with a stop string that its known answer holds past its half."""
    out = []
    for i, (body, answer) in enumerate(zip(asked, right, strict=True)):
        text = answer.choices[0].text
        at = len(text) * 2 // 3
        stop = text[at : at + 5]
        if i % 6 == 4 and "n" not in body and stop and "\ufffd" not in stop:
            body = body | {"stop": [stop]}
        out.append(body)
    return out


Told = Callable[[int], None]
"""Called with the tokens of each event."""


async def ask(url: str, body: dict[str, Any], told: Told = lambda n: None) -> Answer:
    """Streams one completion to its end. AssertionError when the stream breaks its contract."""
    parts = urlsplit(url)
    more = {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    data = json.dumps(body | more).encode()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    answer, ended = Answer(), False
    try:
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        line = (await reader.readline()).decode()
        assert " 200 " in line, line + (await reader.read()).decode()
        while line := (await reader.readline()).decode():
            if not line.startswith("data: "):
                continue
            assert not ended, f"after the end: {line}"
            if line == "data: [DONE]\n":
                ended = True
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                answer.error = event["error"]["message"]
                continue
            told(_take(answer, event))
    finally:
        writer.close()
    assert ended, "the stream ended without [DONE]"
    return answer


def _take(answer: Answer, event: dict[str, Any]) -> int:
    if event.get("usage"):
        answer.completion_tokens = event["usage"]["completion_tokens"]
    tokens = 0
    for part in event["choices"]:
        choice = answer.choices.setdefault(part["index"], Choice())
        assert not choice.finish, f"after finish_reason: {part}"
        choice.text += part["text"]
        choice.ids += part.get("token_ids") or []
        tokens += len(part.get("token_ids") or [])
        choice.finish = part.get("finish_reason") or ""
        if part.get("logprobs"):
            choice.logprobs += part["logprobs"]["token_logprobs"]
    return tokens


async def ask_all(
    url: str, asked: list[dict[str, Any]], strike_at: int = 0, strike: Callable[[], Any] = int
) -> list[Answer]:
    """All at once. strike: called once `strike_at` tokens have arrived in all."""
    count = 0

    def told(tokens: int) -> None:
        nonlocal count
        before, count = count, count + tokens
        if before < strike_at <= count:
            strike()

    async with asyncio.timeout(180):
        return await asyncio.gather(*(ask(url, body, told) for body in asked))


def wrong(got: list[Answer], right: list[Answer]) -> list[str]:
    """What differs, a line a stream."""
    pairs = zip(got, right, strict=True)
    found = ((i, a.differs(b)) for i, (a, b) in enumerate(pairs))
    return [f"stream {i}: {words}" for i, words in found if words]
