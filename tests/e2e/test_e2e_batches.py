"""A batch on the embedded model whose frontend is killed in the middle, and a run that ends."""

from __future__ import annotations

import json
import signal
import sqlite3
from typing import Any

import openai
from stand import Stand, until

LINES = 60


def lines() -> bytes:
    def one(i: int) -> dict[str, Any]:
        asked = f"What is {i % 50} + {i % 7}?"
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": asked}],
            "temperature": 0,
            "max_tokens": 120,
            "ignore_eos": True,
        }
        url = "/v1/chat/completions"
        return {"custom_id": f"sum-{i}", "method": "POST", "url": url, "body": body}

    return b"".join(json.dumps(one(i)).encode() + b"\n" for i in range(LINES))


def client(stand: Stand) -> openai.OpenAI:
    """Asks again while the frontend is away."""
    return openai.OpenAI(base_url=f"{stand.url}/v1", api_key="-", max_retries=20)


def completed(one: openai.OpenAI, id: str) -> int:
    counts = one.batches.retrieve(id).request_counts
    return counts.completed if counts else 0


def ids_so_far(stand: Stand) -> dict[int, str]:
    """Of the answers that are stored, from another connection to the database."""
    path = stand.home / "state" / "batches" / "default" / "batches.sqlite"
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT number, answer FROM lines").fetchall()
    db.close()
    return {number: json.loads(answer)["id"] for number, answer in rows}


def test_a_batch_outlives_its_frontend() -> None:
    with Stand("--set", "engine.max_total_tokens=4096") as stand, client(stand) as one:
        file = one.files.create(file=("sums.jsonl", lines()), purpose="batch")
        batch = one.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        until(lambda: completed(one, batch.id) >= 10, "some lines are answered")
        struck = stand.strike("frontend", signal.SIGKILL)
        kept = ids_so_far(stand)
        assert 10 <= len(kept) < LINES
        until(lambda: stand.pid("frontend") != struck, "another frontend serves")
        until(lambda: one.batches.retrieve(batch.id).status == "completed", "it is completed", 120)
        done = one.batches.retrieve(batch.id)
        assert done.output_file_id is not None and done.error_file_id is None
        answers = [json.loads(a) for a in one.files.content(done.output_file_id).text.splitlines()]
        assert [a["custom_id"] for a in answers] == [f"sum-{i}" for i in range(LINES)]
        assert {number: answers[number]["id"] for number in kept} == kept

        again = one.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        until(lambda: completed(one, again.id) >= 5, "some lines of the next are answered")
        assert stand.cli("down").returncode == 0
        assert stand.cli("up", "--port", "0", "-d", "--wait=120").returncode == 0
        with client(stand) as later:
            until(lambda: later.batches.retrieve(again.id).status == "completed", "again", 120)
            assert [b.id for b in later.batches.list()] == [again.id, batch.id]
