"""Prompts out of files: ShareGPT's conversations and JSON lines."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from appliance.bench.stream import BadResponse, Endpoint
from appliance.bench.workload import Prompt
from appliance.errors import NetworkError, NotFoundError, UsageError

_FEWEST_TOKENS = 2
_LONGEST_PROMPT = 1024
_LONGEST_BOTH = 2048
_AT_ONCE = 16


class _Tokens(msgspec.Struct, frozen=True):
    tokens: list[int]


class _Turn(msgspec.Struct, frozen=True):
    value: str = ""


class _Conversation(msgspec.Struct, frozen=True):
    conversations: list[_Turn] = []


class _Line(msgspec.Struct, frozen=True):
    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = None
    output_len: int | None = None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise NotFoundError(
            f"{path} cannot be read: {problem.strerror}.",
            "Give the path of a local file.",
            code="APL-NOT-018",
        ) from problem


def read_jsonl(path: Path, count: int, output_len: int) -> list[Prompt]:
    """The first ``count`` lines (0: all): {"prompt": text or ids} or {"messages": […]}.

    The output length is a line's max_tokens or output_len, else ``output_len``. Raises UsageError.
    """
    prompts: list[Prompt] = []
    for place, raw in enumerate(_read(path).splitlines(), 1):
        if not raw.strip():
            continue
        try:
            line = msgspec.json.decode(raw, type=_Line)
        except msgspec.DecodeError as problem:
            raise UsageError(
                f"Line {place} of {path} cannot be used: {problem}.",
                'Write {"prompt": "…", "max_tokens": 64} or {"messages": […]}.',
            ) from problem
        if (line.prompt is None) == (line.messages is None):
            raise UsageError(
                f"Line {place} of {path} needs a prompt or messages.", "Give one of the two."
            )
        prompts.append(
            Prompt(
                line.max_tokens or line.output_len or output_len,
                ids=line.prompt if isinstance(line.prompt, list) else None,
                text=line.prompt if isinstance(line.prompt, str) else None,
                messages=line.messages,
            )
        )
        if len(prompts) == count:
            break
    if not prompts:
        raise UsageError(f"{path} holds no prompt.", "Give a file with one JSON object a line.")
    return prompts


def conversations(path: Path, seed: int) -> list[tuple[str, str]]:
    """The first two turns of each conversation that has them, shuffled. Raises UsageError."""
    try:
        talks = msgspec.json.decode(_read(path), type=list[_Conversation])
    except msgspec.DecodeError as problem:
        raise UsageError(
            f"{path} is no ShareGPT file: {problem}.", "Give its JSON list of conversations."
        ) from problem
    pairs = [
        (t.conversations[0].value, t.conversations[1].value)
        for t in talks
        if len(t.conversations) >= 2
    ]
    order = np.random.default_rng(seed).permutation(len(pairs))
    return [pairs[i] for i in order]


def usable(prompt: int, output: int) -> bool:
    """Whether an exchange of so many tokens is taken: neither too short nor too long."""
    if min(prompt, output) < _FEWEST_TOKENS or prompt > _LONGEST_PROMPT:
        return False
    return prompt + output <= _LONGEST_BOTH


def read_sharegpt(
    path: Path, count: int, seed: int, form: str, url: str, model: str, api_key: str
) -> list[Prompt]:
    """``count`` first exchanges in shuffled order; the second turn's tokens are the output length.

    form: ids, text or chat. Token counts come from the server's /tokenize. Left out: under 2
    tokens, prompts over 1024, both together over 2048. Raises UsageError, NetworkError.
    """
    shuffled = conversations(path, seed)

    async def tokenize() -> list[Prompt]:
        async with Endpoint(url, api_key) as endpoint:
            return await _tokenized(shuffled, count, form, endpoint, model)

    prompts = asyncio.run(tokenize())
    if len(prompts) < count:
        raise UsageError(
            f"{path} has {len(prompts)} conversations that can be used, {count} were asked for.",
            f"Use --num-prompts {len(prompts)}.",
        )
    return prompts


async def _tokenized(
    pairs: list[tuple[str, str]], count: int, form: str, endpoint: Endpoint, model: str
) -> list[Prompt]:
    found: list[Prompt] = []
    for at in range(0, len(pairs), _AT_ONCE):
        batch = pairs[at : at + _AT_ONCE]
        ids = await asyncio.gather(
            *(_ids(endpoint, model, text) for pair in batch for text in pair)
        )
        for i, (text, _) in enumerate(batch):
            prompt, output = ids[2 * i], len(ids[2 * i + 1])
            if not usable(len(prompt), output):
                continue
            if form == "chat":
                found.append(Prompt(output, messages=[{"role": "user", "content": text}]))
            elif form == "text":
                found.append(Prompt(output, text=text))
            else:
                found.append(Prompt(output, ids=prompt))
        if len(found) >= count:
            break
    return found[:count]


async def _ids(endpoint: Endpoint, model: str, text: str) -> list[int]:
    body = msgspec.json.encode({"model": model, "prompt": text})
    try:
        reader = await endpoint.post("/tokenize", body)
        if reader.status != 200:
            raise NetworkError(
                f"{endpoint.url}/tokenize answered {reader.error()}",
                "ShareGPT's lengths are counted there; use --dataset sharegpt-like without it.",
                code="APL-NET-005",
            )
        return msgspec.json.decode(reader.body, type=_Tokens).tokens
    except (OSError, BadResponse, msgspec.DecodeError) as problem:
        raise NetworkError(
            f"{endpoint.url}/tokenize does not answer with tokens: {problem}.",
            "ShareGPT's lengths are counted there; use --dataset sharegpt-like without it.",
            code="APL-NET-005",
        ) from problem
