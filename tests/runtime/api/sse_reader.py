"""Reads event streams strictly, and says what the fake engine's answer should be."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fake_engine import continuation

from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.text import Chat


def events(body: str) -> list[dict[str, Any]]:
    """Every event but the last, which must be [DONE]; each is one `data: ` line."""
    assert body.endswith("\n\n")
    lines = body[:-2].split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines), lines
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def chat_text(chunks: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(
        c["delta"].get("content", "")
        for chunk in chunks
        for c in chunk["choices"]
        if c["index"] == index
    )


def completion_text(chunks: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(c["text"] for chunk in chunks for c in chunk["choices"] if c["index"] == index)


def prompt_ids(room: TextWorker, prompt: str | Chat) -> list[int]:
    return asyncio.run(room.encode(prompt, add_special_tokens=True))


def expected(room: TextWorker, prompt: str | Chat | list[int], n: int) -> str:
    """The text of the n tokens the fake engine gives after a prompt."""
    ids = prompt if isinstance(prompt, list) else prompt_ids(room, prompt)
    return asyncio.run(room.decode(continuation(ids, n), skip_special_tokens=True))
