"""Files and batches through the real openai client, against a served frontend."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from fake_engine import FakeEngine
from openai.types import Batch
from served_frontend import Served

from appliance import keys, paths
from appliance.errors import RequestError
from appliance.runtime.api.batches.calls import PRIORITY
from appliance.runtime.api.batches.records import ENDED, BatchRecord, FileRecord
from appliance.runtime.api.batches.room import ENDPOINTS
from appliance.runtime.api.batches.store import Store
from appliance.runtime.api.batches.turn import Turn
from appliance.runtime.wire.delta import Welcome
from appliance.runtime.wire.request import ids_from_bytes

CHAT = "/v1/chat/completions"


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def asked(number: int, **body: Any) -> dict[str, Any]:
    whole = {"model": "default", "prompt": f"line {number}", "max_tokens": 8, **body}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/completions", "body": whole}


def jsonl(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def upload(client: openai.OpenAI, lines: list[Any]) -> str:
    return client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch").id


def create(client: openai.OpenAI, lines: list[Any], endpoint: Any = "/v1/completions") -> Batch:
    return client.batches.create(
        input_file_id=upload(client, lines), endpoint=endpoint, completion_window="24h"
    )


def until(client: openai.OpenAI, id: str, true: Callable[[Batch], bool]) -> Batch:
    end = time.monotonic() + 30
    while not true(batch := client.batches.retrieve(id)):
        assert time.monotonic() < end, batch
        time.sleep(0.02)
    return batch


def ended(batch: Batch) -> bool:
    return batch.status in ENDED


def lines_of(client: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(line) for line in client.files.content(file).text.splitlines()]


def test_files_come_and_go(client: openai.OpenAI) -> None:
    assert list(client.files.list()) == []
    data = jsonl([asked(i) for i in range(3)])
    first = client.files.create(file=("a name.jsonl", data), purpose="batch")
    second = client.files.create(
        file=("b.jsonl", b"x\n"),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (first.bytes, first.filename, first.purpose) == (len(data), "a name.jsonl", "batch")
    assert second.expires_at == second.created_at + 3600
    assert client.files.retrieve(first.id) == first
    assert client.files.content(first.id).content == data
    assert [f.id for f in client.files.list()] == [second.id, first.id]
    assert [f.id for f in client.files.list(limit=1, order="asc")] == [first.id, second.id]
    assert client.files.delete(first.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(first.id)


@pytest.mark.parametrize(
    ("parts", "status", "said"),
    [
        ({"data": {"purpose": "batch"}, "files": {"other": b""}}, 400, "file"),
        ({"files": {"file": ("f", b"x")}}, 400, "purpose is missing"),
        ({"data": {"purpose": "vision"}, "files": {"file": ("f", b"x")}}, 400, "vision"),
        ({"json": {}}, 415, "multipart"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "form"),
        (
            {
                "content": b"--b\r\nx",
                "headers": {"content-type": "multipart/form-data; boundary=b; charset=no-such"},
            },
            400,
            "form",
        ),
    ],
)
def test_bad_uploads(served: Served, parts: dict[str, Any], status: int, said: str) -> None:
    answer = httpx.post(f"{served.url}/v1/files", **parts)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    kept = served.run_dir / "state" / "batches" / "test" / "files"
    assert not kept.exists() or not list(kept.iterdir())


def test_a_file_that_is_too_large_is_told_before_it_comes(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("content-type", "multipart/form-data; boundary=b")
    connection.putheader("content-length", str(1 << 30))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status in (413, 507)
    answer.read()
    connection.close()


@pytest.mark.parametrize("path", ["/v1/files/x", "/v1/files/%2e%2e", "/v1/batches/x"])
def test_unknown_ids(served: Served, path: str) -> None:
    assert httpx.get(served.url + path).status_code == 404


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=999999999999", "order=up"])
def test_bad_pages(served: Served, query: str) -> None:
    assert httpx.get(f"{served.url}/v1/batches?{query}").status_code == 400


def test_a_batch_is_answered(client: openai.OpenAI, engine: FakeEngine) -> None:
    wrong = asked(3, temperature=9)
    streamed = asked(4, stream=True)
    other = asked(5, model="gpt-4o")
    lines = [asked(0), asked(1), asked(2), wrong, streamed, other]
    batch = client.batches.create(
        input_file_id=upload(client, lines),
        endpoint="/v1/completions",
        completion_window="24h",
        metadata={"night": "7"},
    )
    assert batch.status == "validating" and batch.object == "batch"
    assert batch.expires_at == batch.created_at + 24 * 3600
    batch = until(client, batch.id, ended)
    assert batch.status == "completed", batch
    assert batch.metadata == {"night": "7"}
    assert batch.in_progress_at and batch.finalizing_at and batch.completed_at
    counts = batch.request_counts
    assert counts and (counts.total, counts.completed, counts.failed) == (6, 3, 3)
    good = lines_of(client, batch.output_file_id)
    assert [line["custom_id"] for line in good] == ["r0", "r1", "r2"]
    direct = client.completions.create(model="default", prompt="line 1", max_tokens=8)
    assert good[1]["response"]["body"]["choices"][0]["text"] == direct.choices[0].text
    assert good[1]["response"]["status_code"] == 200 and good[1]["error"] is None
    bad = lines_of(client, batch.error_file_id)
    assert [(b["custom_id"], b["response"]["status_code"]) for b in bad] == [
        ("r3", 400), ("r4", 400), ("r5", 404),
    ]  # fmt: skip
    assert "temperature" in bad[0]["response"]["body"]["error"]["message"]
    assert {r.priority for r in engine.requests} == {PRIORITY, 0}
    out = client.files.retrieve(batch.output_file_id or "")
    assert out.purpose == "batch_output" and out.filename.endswith("_output.jsonl")


def test_every_endpoint_of_a_batch(client: openai.OpenAI, engine: FakeEngine) -> None:
    asked_of = {
        CHAT: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "priority": 9},
        "/v1/completions": {"prompt": "Hi", "max_tokens": 4, "priority": 9},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 16},
        "/v1/embeddings": {"input": "Hi"},
    }
    assert set(asked_of) == set(ENDPOINTS)
    for url, body in asked_of.items():
        whole = {"model": "default", **body}
        line = {"custom_id": "c", "method": "POST", "url": url, "body": whole}
        batch = until(client, create(client, [line], url).id, ended)
        assert batch.status == "completed"
        if url == "/v1/embeddings":  # this model writes text
            (answer,) = lines_of(client, batch.error_file_id)
            assert answer["response"]["status_code"] == 400
        else:
            (answer,) = lines_of(client, batch.output_file_id)
            assert answer["response"]["body"]["id"]
    assert [r.priority for r in engine.requests] == [PRIORITY] * 3


def test_a_chat_batch(client: openai.OpenAI) -> None:
    body = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    line = {"custom_id": "c", "method": "POST", "url": CHAT, "body": body}
    batch = until(client, create(client, [line], CHAT).id, ended)
    assert batch.error_file_id is None
    (answer,) = lines_of(client, batch.output_file_id)
    assert answer["response"]["body"]["object"] == "chat.completion"
    assert [b.id for b in client.batches.list(limit=1)] == [batch.id]


@pytest.mark.parametrize(
    ("lines", "code", "at"),
    [
        ([], "empty_file", None),
        ([asked(0), asked(0)], "duplicate_custom_id", 2),
        ([asked(0), asked(1) | {"method": "GET"}], "invalid_method", 2),
        ([asked(0) | {"url": CHAT}], "mismatched_endpoint", 1),
        ([asked(0) | {"url": "/v1/nothing"}], "invalid_url", 1),
        ([asked(0) | {"custom_id": ""}], "invalid_custom_id", 1),
        ([{"custom_id": "x"}], "invalid_line", 1),
        ([asked(0) | {"body": []}], "invalid_line", 1),
    ],
)
def test_bad_input_files(client: openai.OpenAI, lines: list[Any], code: str, at: int) -> None:
    batch = until(client, create(client, lines).id, ended)
    assert batch.status == "failed" and batch.failed_at
    assert batch.errors and batch.errors.data
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, at)


def test_an_input_that_is_no_json(client: openai.OpenAI) -> None:
    file = client.files.create(file=("f", b"\n{oops\n\xff\n" + b"[" * 100_000), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    batch = until(client, batch.id, ended)
    assert batch.errors and batch.errors.data
    assert [e.line for e in batch.errors.data] == [2, 3, 4]


def test_bad_batches(client: openai.OpenAI) -> None:
    file = upload(client, [asked(0)])
    with pytest.raises(openai.NotFoundError):
        client.batches.create(
            input_file_id="file-x", endpoint="/v1/completions", completion_window="24h"
        )
    for changed in (
        {"endpoint": "/v1/images/generations"},
        {"completion_window": "1h"},
        {"metadata": {"k": "v" * 600}},
    ):
        given = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", **changed}
        with pytest.raises(openai.BadRequestError, match=next(iter(changed))):
            client.batches.create(**given)  # type: ignore[call-overload]


def test_cancelling(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.hold.set()
    batch = create(client, [asked(i) for i in range(300)])
    with pytest.raises(openai.ConflictError, match="Cancel"):
        client.files.delete(batch.input_file_id)
    engine.wait(lambda: len(engine.requests) >= 8)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = until(client, batch.id, ended)
    assert batch.status == "cancelled" and batch.cancelled_at
    engine.wait(lambda: len(engine.aborts) == len(engine.requests))
    engine.hold.clear()
    with pytest.raises(openai.ConflictError):
        done = until(client, create(client, [asked(0)]).id, ended)
        client.batches.cancel(done.id)
    assert client.files.delete(batch.input_file_id).deleted


def test_an_abort_of_everything_spares_batches(
    served: Served, client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.hold.set()
    batch = create(client, [asked(i) for i in range(4)])
    engine.wait(lambda: len(engine.requests) == 4)
    assert httpx.post(f"{served.url}/abort_request", json={"abort_all": True}).is_success
    engine.hold.clear()
    batch = until(client, batch.id, ended)
    assert batch.request_counts and batch.request_counts.completed == 4


def test_expiry(client: openai.OpenAI, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.hold.set()
    monkeypatch.setattr("appliance.runtime.api.batches.routes.WINDOW_S", 1)
    batch = until(client, create(client, [asked(i) for i in range(3)]).id, ended)
    assert batch.status == "expired" and batch.expired_at and batch.output_file_id is None
    told = lines_of(client, batch.error_file_id)
    assert [t["custom_id"] for t in told] == ["r0", "r1", "r2"]
    assert {t["error"]["code"] for t in told} == {"batch_expired"}


def prompts(engine: FakeEngine, served: Served) -> list[str]:
    room = served.frontend.text
    return [
        served.call(room.decode(ids_from_bytes(r.prompt).tolist(), True)) for r in engine.requests
    ]


def test_another_life_goes_on(
    engine: FakeEngine, serve: Callable[..., Served], served: Served, client: openai.OpenAI
) -> None:
    """Answered lines are not asked again; those that ran are."""
    engine.budget = 8 * 40
    batch = create(client, [asked(i) for i in range(100)])
    engine.wait(lambda: engine.budget == 0)
    done = until(client, batch.id, lambda b: bool(b.request_counts and b.request_counts.completed))
    assert done.request_counts
    served.close()
    store = Store(served.run_dir / "state" / "batches" / "test")
    kept = store.answered(batch.id)
    store.close()
    assert kept
    before = len(engine.requests)
    engine.budget = None
    second = serve(1).connected()
    with openai.OpenAI(base_url=f"{second.url}/v1", api_key="-") as next_client:
        batch = until(next_client, batch.id, ended)
        assert batch.status == "completed"
        answers = lines_of(next_client, batch.output_file_id)
    assert [a["custom_id"] for a in answers] == [f"r{i}" for i in range(100)]
    again = prompts(engine, second)[before:]
    assert sorted(again) == sorted(f"line {i}" for i in range(100) if i not in kept)


def test_two_frontends_share_the_work(
    engine: FakeEngine, serve: Callable[..., Served], served: Served, client: openai.OpenAI
) -> None:
    second = serve(1).connected()
    assert second.process.batches is not served.process.batches
    ids = [create(client, [asked(i, prompt=f"b{b} {i}") for i in range(20)]).id for b in range(6)]
    with openai.OpenAI(base_url=f"{second.url}/v1", api_key="-") as other:
        for id in ids:
            assert until(other, id, ended).status == "completed"
    asked_for = prompts(engine, served)
    assert len(asked_for) == len(set(asked_for)) == 120


def test_live_requests_come_first(client: openai.OpenAI, engine: FakeEngine) -> None:
    """Lines take half of the engine's 64 rows where they are alone."""
    engine.hold.set()
    batch = create(client, [asked(i) for i in range(100)])
    engine.wait(lambda: len(engine.requests) == 32)
    engine.hold.clear()
    assert until(client, batch.id, ended).status == "completed"


def test_each_key_has_its_own(
    engine: FakeEngine, serve: Callable[..., Served], tmp_path: Path
) -> None:
    engine.start()
    file = tmp_path / "keys.json"
    first, second = keys.add_key(file, "first"), keys.add_key(file, "second")
    url = f"{serve(keys_file=str(file)).connected().url}/v1"
    with openai.OpenAI(base_url=url, api_key=first, max_retries=0) as one:
        with openai.OpenAI(base_url=url, api_key=second, max_retries=0) as two:
            batch = until(one, create(one, [asked(0)]).id, ended)
            assert batch.status == "completed"
            assert len(list(one.files.list())) == 2 and len(list(one.batches.list())) == 1
            assert not list(two.files.list()) and not list(two.batches.list())
            for call in (two.files.retrieve, two.files.content, two.files.delete):
                with pytest.raises(openai.NotFoundError):
                    call(batch.input_file_id)
            for look in (two.batches.retrieve, two.batches.cancel):
                with pytest.raises(openai.NotFoundError):
                    look(batch.id)
            with pytest.raises(openai.NotFoundError):
                two.batches.create(
                    input_file_id=batch.input_file_id,
                    endpoint="/v1/completions",
                    completion_window="24h",
                )
    namespace = next(k.namespace for k in keys.read_keys(file) if k.name == "first")
    assert {r.cache_key.partition("/")[0] for r in engine.requests} == {namespace}


class StandIn:
    """What a Turn looks at of its frontend."""

    def __init__(self) -> None:
        welcome = Welcome(1, 1, 512, 4096, 16, 64, 300, 1)
        self.engines = [SimpleNamespace(connected=True, welcome=welcome)]
        self.draining = False
        self.others = False
        self.waits = 0.0

    def busy(self, above: int) -> bool:
        return self.others

    def starved(self, above: int, seconds: float) -> bool:
        return self.waits > seconds


async def begun(turn: Turn, most: int) -> list[asyncio.Task[None]]:
    """As many lines as the turn lets begin at once, and no more than `most`."""
    lines: list[asyncio.Task[None]] = []
    while len(lines) < most:
        try:
            async with asyncio.timeout(0.05):
                await turn.wait()
        except TimeoutError:
            break
        lines.append(asyncio.ensure_future(asyncio.sleep(60)))
        turn.begin(lines[-1])
    return lines


async def test_lines_take_what_is_left_over() -> None:
    frontend = StandIn()
    turn = Turn(frontend, share=2)  # type: ignore[arg-type]
    lines = await begun(turn, 99)
    assert len(lines) == 64 // 2 // 2
    frontend.others = True
    for line in lines[:-3]:
        line.cancel()
    await asyncio.sleep(0)
    assert not await begun(turn, 1)
    lines[-1].cancel()
    lines[-2].cancel()
    await asyncio.sleep(0)
    assert len(await begun(turn, 99)) == 64 // 16 // 2 - 1
    frontend.others = False
    assert not await begun(turn, 1), "it was not quiet for long"
    frontend.waits = 0.3
    turn.look()
    assert not await begun(turn, 1)
    frontend.waits = 0.0
    frontend.engines[0].connected = False
    turn.look()
    assert not await begun(turn, 1)


async def test_the_newest_lines_give_way() -> None:
    frontend = StandIn()
    turn = Turn(frontend, share=1)  # type: ignore[arg-type]
    lines = await begun(turn, 8)
    frontend.waits = 1.0
    turn.look()
    await asyncio.sleep(0)
    assert [line.cancelled() for line in lines] == [False] * 4 + [True] * 4
    frontend.waits = 0.0
    turn.look()
    assert len(await begun(turn, 2)) == 2


def test_a_line_that_gave_way_is_run_later(
    client: openai.OpenAI, engine: FakeEngine, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.hold.set()
    batch = create(client, [asked(i) for i in range(10)])
    engine.wait(lambda: len(engine.requests) == 10)
    frontend = served.frontend
    monkeypatch.setattr(frontend, "starved", lambda above, seconds: True)
    engine.wait(lambda: len(engine.aborts) >= 5)
    monkeypatch.undo()
    engine.hold.clear()
    batch = until(client, batch.id, ended)
    assert batch.request_counts and batch.request_counts.completed == 10


def test_a_lease_that_ran_out_is_anybodys(tmp_path: Path) -> None:
    store = Store(tmp_path)
    now = int(time.time())
    store.add_batch(
        BatchRecord(id="b", endpoint=CHAT, input_file_id="f", created_at=now, expires_at=now + 9)
    )
    assert [r.id for r in store.claim("elsewhere/1/0", 8)] == ["b"]
    assert store.claim("other", 8) == [] and store.beat("other") == {}
    store._db.execute("UPDATE batches SET leased_until = ?", (time.time() - 1,))
    assert [r.id for r in store.claim("other", 8)] == ["b"]
    assert store.beat("elsewhere/1/0") == {} and store.beat("other") == {"b": "validating"}
    gone = f"{socket.gethostname()}/{2**22 + 7}/0"
    store._db.execute("UPDATE batches SET owner = ?", (gone,))
    assert [r.id for r in store.claim("third", 8)] == ["b"]
    store.close()


def test_a_store_of_another_version_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "batches.sqlite") as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(RequestError, match="another version"):
        Store(tmp_path)


def test_a_sweep_takes_what_is_old(tmp_path: Path) -> None:
    store = Store(tmp_path)
    now = int(time.time())
    for id, expires_at in (("file-a", now - 5), ("file-b", now + 60), ("file-c", None)):
        (tmp_path / "x").write_bytes(b"x")
        record = FileRecord(
            id=id, bytes=1, created_at=now, filename="f", purpose="batch", expires_at=expires_at
        )
        store.add_file(record, tmp_path / "x")
    left, fresh = tmp_path / "files" / "file-d.part", tmp_path / "files" / "file-e.part"
    left.write_bytes(b"")
    fresh.write_bytes(b"")
    os.utime(left, (now - 2 * 24 * 3600,) * 2)
    store.sweep()
    assert {p.name for p in (tmp_path / "files").iterdir()} == {"file-b", "file-c", fresh.name}
    assert [f.id for f in store.files("", "", "", 9, True)] == ["file-b", "file-c"]
    store.close()


def test_answers_are_written_again_after_a_death(
    client: openai.OpenAI, engine: FakeEngine, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try dies after its files are there and before the record says so."""
    finish, calls = Store.finish, []

    def dies_once(store: Store, *arguments: Any, **fields: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError("no space left")
        return finish(store, *arguments, **fields)

    monkeypatch.setattr(Store, "finish", dies_once)
    monkeypatch.setattr("appliance.runtime.api.batches.work.PATIENCE_S", 0.05)
    batch = until(client, create(client, [asked(i) for i in range(5)]).id, ended)
    assert batch.status == "completed" and len(calls) == 2
    assert len(lines_of(client, batch.output_file_id)) == 5
    kept = served.run_dir / "state" / "batches" / "test" / "files"
    assert {p.name for p in kept.iterdir()} == {batch.input_file_id, batch.output_file_id}
    assert len(engine.requests) == 5


def test_lines_stand_in_the_request_log(client: openai.OpenAI, served: Served) -> None:
    refused = asked(2, model="nobody")
    batch = until(client, create(client, [asked(1), refused]).id, ended)
    answers = lines_of(client, batch.output_file_id) + lines_of(client, batch.error_file_id)
    client.close()
    served.close()
    written = paths.request_log("test", 0).read_text().splitlines()
    rows = {row["id"]: row for row in map(json.loads, written) if row["agent"] == "batch"}
    assert {a["response"]["request_id"] for a in answers} == set(rows)
    assert sorted((r["status"], r["error"], r["output_tokens"]) for r in rows.values()) == [
        (200, None, 8), (404, "model_not_found", None),
    ]  # fmt: skip
