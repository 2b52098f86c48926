"""What happens to a run, told in order, from where a reader left off."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from supervisor_stage import StandIns, pids, staged

from appliance import paths
from appliance.client import AsyncClient
from appliance.status import Event
from appliance.supervisor import events as events_module
from appliance.supervisor.alerts import Alerts, Seen
from appliance.supervisor.events import EventBook


async def frames(stream: AsyncIterator[bytes]) -> list[Event]:
    return [event_of(frame) async for frame in stream if frame.startswith((b"id:", b"event:"))]


def event_of(frame: bytes) -> Event:
    data = next(line for line in frame.split(b"\n") if line.startswith(b"data: "))
    return msgspec.json.decode(data[6:], type=Event)


def book(count: int = 0, kept: int = 1000) -> EventBook:
    made = EventBook("r", 1.0, kept)
    for number in range(1, count + 1):
        made.tell("phase", f"p{number}")
    return made


async def told(made: EventBook, after: str = "", history: int = 1000) -> list[str]:
    return [e.message for e in await frames(made.stream(after, history, follow=False))]


async def test_all_of_it_or_what_is_behind_an_id() -> None:
    made = book(5)
    whole = await frames(made.stream("", 1000, follow=False))
    assert [e.id for e in whole] == [f"3e8-{n}" for n in range(1, 6)]
    assert await told(made, after=whole[2].id) == ["p4", "p5"]
    assert await told(made, after=whole[4].id) == []
    assert await told(made, history=2) == ["p4", "p5"]
    assert await told(made, history=0) == []


async def test_a_gap_is_told() -> None:
    made = book(10, kept=3)
    assert await told(made) == ["p8", "p9", "p10"], "who knew nothing misses nothing"
    assert await told(made, after="3e8-7") == ["p8", "p9", "p10"]
    assert await told(made, after="3e8-4") == ["3 events are no longer kept", "p8", "p9", "p10"]
    for other in ("abc-4", "3e8-11", "nonsense"):
        first, *rest = await told(made, after=other)
        assert "another start" in first and rest == ["p8", "p9", "p10"]
    (gap, *_) = await frames(made.stream("abc-4", 1000, follow=False))
    assert (gap.kind, gap.id, gap.level) == ("gap", "", "warn")


async def test_who_follows_is_told_each_in_order_until_the_end() -> None:
    made = book(2)
    readers = [asyncio.create_task(frames(made.stream("", 1000, follow=True))) for _ in range(3)]
    for number in range(3, 8):
        made.tell("phase", f"p{number}")
        if number % 2:
            await asyncio.sleep(0)
    made.tell("stopped", "stopped in 0.1 s")
    made.close()
    for reader in readers:
        found = [e.message for e in await asyncio.wait_for(reader, 10)]
        assert found == [*(f"p{n}" for n in range(1, 8)), "stopped in 0.1 s"]


async def test_a_slow_reader_misses_nothing_or_is_told_so() -> None:
    """Whatever happens between two reads."""
    made = book(3, kept=4)
    stream = made.stream("", 1000, follow=True)
    seen = [event_of(await anext(stream)).message]
    for number in range(4, 6):
        made.tell("phase", f"p{number}")
    seen += [event_of(await anext(stream)).message for _ in range(4)]
    assert seen == ["p1", "p2", "p3", "p4", "p5"]
    for number in range(6, 13):
        made.tell("phase", f"p{number}")
    made.close()
    assert [e.message for e in await frames(stream)] == [
        "3 events are no longer kept",
        *(f"p{n}" for n in range(9, 13)),
    ]


async def test_silence_is_a_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "ALIVE_S", 0.01)
    stream = book().stream("", 1000, follow=True)
    assert await anext(stream) == b": alive\n\n"
    await stream.aclose()


def test_a_line_for_people_and_the_rest() -> None:
    made = book()
    made.tell("death", "engine 0 died\nof this\nand that")
    (event,) = made.since(0)
    assert (event.message, event.level) == ("engine 0 died", "error")
    assert event.detail == {"why": "of this\nand that"}


def test_alerts_begin_and_are_over_once() -> None:
    said: list[tuple[bool, str, str]] = []
    alerts = Alerts(lambda begins, found: said.append((begins, found.code, found.place)))
    low = {"/a": 1, "/b": 10**12}
    for disk in (low, low, {"/a": 1, "/b": 1}, {"/b": 1}, {}):
        alerts.judge(Seen(now=1.0, disk=disk))
    code = "APL-ALR-007"
    assert said == [
        (True, code, "/a"),
        (True, code, "/b"),
        (False, code, "/a"),
        (False, code, "/b"),
    ]


async def test_the_life_of_a_run() -> None:
    """Start, a death, a reload, a restart by hand and the end, as a client that follows sees it."""
    async with staged(StandIns(phases=["load"])) as stage:
        await stage.heard("ready")
        seen: list[Event] = []

        async def follow() -> None:
            async for event in AsyncClient(paths.control_socket(stage.run)).events():
                seen.append(event)

        following = asyncio.create_task(follow())

        async def until(true: Callable[[list[str]], bool]) -> None:
            async with asyncio.timeout(20):
                while not true([e.kind for e in seen]):
                    await asyncio.sleep(0.01)

        await until(lambda kinds: "ready" in kinds)
        assert [e.kind for e in seen][:2] == ["started", "phase"]
        (engine,) = pids(await stage.status(), "engine")
        os.kill(engine, signal.SIGKILL)
        await until(lambda kinds: kinds.count("ready") == 2)
        await until(lambda kinds: "alert" in kinds)
        await asyncio.to_thread(stage.client.reload, {"serve.max_queue": 9})
        await asyncio.to_thread(stage.client.restart)
        await until(lambda kinds: kinds.count("ready") == 3)
        (frontend,) = pids(await stage.status(), "frontend")
        os.kill(frontend, signal.SIGKILL)
        await until(lambda kinds: kinds.count("death") == 2 and kinds.count("restart") == 3)
        await asyncio.to_thread(stage.client.down, 1.0)
        await asyncio.wait_for(following, 10)
        kinds = [e.kind for e in seen]
        order = ["started", "ready", "death", "restart", "ready", "reload", "restart", "stopped"]
        at = -1
        for kind in order:
            at = kinds.index(kind, at + 1)
        assert kinds[-1] == "stopped" and "drain" in kinds and "gap" not in kinds
        alert = next(e for e in seen if e.kind == "alert")
        assert alert.detail["code"] == "APL-ALR-001" and "appliance logs" in alert.detail["fix"]
        assert len({e.id for e in seen}) == len(seen)


async def test_the_control_socket_speaks_as_browsers_expect() -> None:
    async with staged() as stage:
        await stage.heard("ready")

        async def ask(target: str, *headers: str) -> bytes:
            reader, writer = await asyncio.open_unix_connection(
                str(paths.control_socket(stage.run))
            )
            head = "\r\n".join([f"GET /appliance/v1/events{target} HTTP/1.1", "host: x", *headers])
            writer.write(f"{head}\r\nconnection: close\r\n\r\n".encode())
            answer = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            return answer

        whole = await ask("?follow=0")
        assert b"200 OK" in whole and b"content-type: text/event-stream" in whole
        ids = [line[4:].decode() for line in whole.splitlines() if line.startswith(b"id: ")]
        rest = await ask("?follow=0", f"last-event-id: {ids[-2]}")
        assert [x[4:].decode() for x in rest.splitlines() if x.startswith(b"id: ")] == ids[-1:]
        assert b"event: gap" in await ask("?follow=0", "last-event-id: 1-1")
        assert b" 400 " in (await ask("?history=x")).partition(b"\r\n")[0]


async def test_a_failure_is_told_with_its_cause() -> None:
    told: dict[str, Any] = {"message": "no\nroom", "exit_code": 7, "code": "APL-FIT-001"}
    async with staged(StandIns(failed=told)) as stage:
        await stage.heard("failed")
        seen = await asyncio.to_thread(lambda: list(stage.client.events(follow=False)))
        (failed,) = [e for e in seen if e.kind == "failed"]
        assert (failed.message, failed.level) == ("no", "error")
        assert failed.detail["why"] == "room"
        assert json.loads(msgspec.json.encode(failed))["schema"] == "appliance.event/1"
