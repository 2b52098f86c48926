"""The door of an engine and the links of frontends, over real Unix sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.runtime.wire.channel import EngineDoor, EngineLink, FrameReader, frame
from appliance.runtime.wire.codec import MAX_MESSAGE, VERSION, CodecError, decode_to_frontend
from appliance.runtime.wire.delta import Admitted, Deltas, Leaving, ToFrontend, TokenDelta, Welcome
from appliance.runtime.wire.request import (
    Abort,
    FlushCache,
    Hello,
    Sampling,
    ToEngine,
    TokenRequest,
)

WELCOME = Welcome(
    version=VERSION, generation=3, context=100, total_tokens=1600, page_size=16,
    max_running=4, vocab=10, pid=1,
)  # fmt: skip
PATIENCE = 10.0
"""Seconds after which a message is taken for lost; nothing waits this long when all is well."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


@pytest.fixture
def door(path: Path) -> Iterator[EngineDoor]:
    door = EngineDoor(path, WELCOME)
    yield door
    door.close()


class Caller:
    """A frontend that blocks: raw bytes out, messages in."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self._reader = FrameReader()
        self._whole: list[bytes] = []

    def say(self, *messages: ToEngine) -> None:
        self.sock.sendall(b"".join(frame(m) for m in messages))

    def hear(self) -> ToFrontend:
        while not self._whole:
            data = self.sock.recv(1 << 16)
            assert data, "the door has closed"
            self._whole += self._reader.feed(data)
        return decode_to_frontend(self._whole.pop(0))


Call = Callable[[], Caller]


@pytest.fixture
def call(path: Path) -> Iterator[Call]:
    """Calls the door at `path`; hangs up at the test's end."""
    callers: list[Caller] = []

    def make() -> Caller:
        callers.append(Caller())
        callers[-1].sock.connect(str(path))
        return callers[-1]

    yield make
    for caller in callers:
        caller.sock.close()


def receive(door: EngineDoor, count: int) -> list[tuple[int, ToEngine | None]]:
    """The next `count` messages."""
    got: list[tuple[int, ToEngine | None]] = []
    while len(got) < count:
        before = len(got)
        for _ in range(100):
            got += door.receive(PATIENCE / 100)
            if len(got) > before:
                break
        else:
            raise AssertionError(f"only {got}")
    return got


def request(rid: int, prompt: bytes = b"") -> TokenRequest:
    return TokenRequest(rid=rid, prompt=prompt, sampling=Sampling(max_tokens=1))


@given(st.lists(st.binary(max_size=30), max_size=5), st.data())
def test_frames_survive_any_cut(contents: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(struct.pack("<I", len(c)) + c for c in contents)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, got = FrameReader(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[begin:end])
    assert got == contents


def test_frame_too_long_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(CodecError):
        FrameReader().feed(struct.pack("<I", MAX_MESSAGE + 1))


def test_socket_is_for_this_user_only(door: EngineDoor, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_door_takes_the_place_of_a_dead_one(path: Path, call: Call) -> None:
    EngineDoor(path, WELCOME).close()
    assert path.exists()
    again = EngineDoor(path, WELCOME)
    caller = call()
    again.receive(PATIENCE)
    assert caller.hear() == WELCOME
    again.close()


def test_conversation(door: EngineDoor, call: Call) -> None:
    caller = call()
    door.receive(PATIENCE)
    assert caller.hear() == WELCOME
    said = [Hello(VERSION, 0, 1), request(7, b"\1\0\0\0"), Abort(7), FlushCache()]
    caller.say(*said)
    got = receive(door, 4)
    assert [m for _, m in got] == said
    (peer,) = {number for number, _ in got}
    door.send(peer, Admitted((7,), 1.5))
    assert caller.hear() == Admitted((7,), 1.5)


def test_a_message_comes_piece_by_piece(door: EngineDoor, call: Call) -> None:
    caller = call()
    door.receive(PATIENCE)
    data = frame(request(9, bytes(100)))
    for at in range(len(data) - 1):
        caller.sock.sendall(data[at : at + 1])
        assert door.receive(0) == []
    caller.sock.sendall(data[-1:])
    assert [m for _, m in receive(door, 1)] == [request(9, bytes(100))]


def test_a_large_message_is_put_together(door: EngineDoor, call: Call) -> None:
    large = request(1, bytes(range(256)) * 20_000)
    caller = call()
    door.receive(PATIENCE)
    caller.sock.setblocking(False)
    data, got = memoryview(frame(large)), []
    while not got:
        try:
            data = data[caller.sock.send(data) :] if data else data
        except BlockingIOError:
            pass
        got += door.receive(0)
    assert [m for _, m in got] == [large]


def test_death_of_a_peer_is_told_once_and_its_number_is_not_used_again(
    door: EngineDoor, call: Call
) -> None:
    first = call()
    door.receive(PATIENCE)
    first.say(request(1))
    ((number, _),) = receive(door, 1)
    first.sock.close()
    assert receive(door, 1) == [(number, None)]
    second = call()
    door.receive(PATIENCE)
    assert door.receive(0) == []
    second.say(request(2))
    ((other, message),) = receive(door, 1)
    assert other != number and message == request(2)
    door.send(number, Admitted((1,), 0.0))  # goes nowhere, and hurts nobody
    door.send(other, Admitted((2,), 0.0))
    assert second.hear() == WELCOME
    assert second.hear() == Admitted((2,), 0.0)


@pytest.mark.parametrize("garbage", [struct.pack("<I", MAX_MESSAGE + 1), b"\3\0\0\0abc"])
def test_a_peer_that_talks_nonsense_is_dropped_alone(
    door: EngineDoor, call: Call, garbage: bytes
) -> None:
    bad = call()
    door.receive(PATIENCE)
    good = call()
    door.receive(PATIENCE)
    bad.sock.sendall(garbage)
    ((number, message),) = receive(door, 1)
    assert message is None
    assert bad.hear() == WELCOME
    assert bad.sock.recv(1) == b""
    good.say(request(5))
    ((other, message),) = receive(door, 1)
    assert other != number and message == request(5)


def test_a_slow_peer_keeps_nobody_waiting_and_loses_nothing(door: EngineDoor, call: Call) -> None:
    slow, quick = call(), call()
    door.receive(PATIENCE)
    door.receive(PATIENCE)
    slow.say(request(1))
    ((slow_number, _),) = receive(door, 1)
    quick.say(request(2))
    ((quick_number, _),) = receive(door, 1)
    ids = tuple(range(60_000))  # one message is more than the kernel takes at a time
    deltas = [Deltas((TokenDelta(rid=1, index=i, ids=ids),)) for i in range(40)]
    for message in deltas:
        door.send(slow_number, message)
    door.send(quick_number, Admitted((2,), 0.0))
    assert quick.hear() == WELCOME
    assert quick.hear() == Admitted((2,), 0.0)
    assert slow.hear() == WELCOME
    slow.sock.setblocking(False)
    reader_waits, got = 0, []
    while len(got) < len(deltas):
        try:
            got.append(slow.hear())
        except BlockingIOError:
            reader_waits += 1
            door.receive(0)  # the rest goes out as there is room
    assert got == deltas
    assert reader_waits


def test_a_peer_that_dies_with_a_backlog(door: EngineDoor, call: Call) -> None:
    caller = call()
    door.receive(PATIENCE)
    caller.say(request(1))
    ((number, _),) = receive(door, 1)
    for i in range(1000):
        door.send(number, Deltas((TokenDelta(rid=1, index=i, ids=tuple(range(2000))),)))
    caller.sock.close()
    door.send(number, Admitted((1,), 0.0))
    assert receive(door, 1) == [(number, None)]
    assert door.receive(0) == []


def test_closing_the_door_ends_every_conversation(path: Path, call: Call) -> None:
    door = EngineDoor(path, WELCOME)
    caller = call()
    door.receive(PATIENCE)
    assert caller.hear() == WELCOME
    door.close()
    assert caller.sock.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        call()


def test_an_engine_that_leaves_says_so_to_everybody(path: Path, call: Call) -> None:
    door = EngineDoor(path, WELCOME)
    callers = [call(), call()]
    for _ in callers:
        door.receive(PATIENCE)
    callers[0].say(request(1))  # unread when the door closes: the goodbye arrives all the same
    door.leave()
    door.close()
    for caller in callers:
        assert [caller.hear(), caller.hear()] == [WELCOME, Leaving()]


class Pump:
    """Runs a door beside an event loop: what comes is put into a queue."""

    def __init__(self, door: EngineDoor) -> None:
        self.door = door
        self.came: asyncio.Queue[tuple[int, ToEngine | None]] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            for message in await asyncio.to_thread(self.door.receive, 0.02):
                self.came.put_nowait(message)

    async def next(self) -> tuple[int, ToEngine | None]:
        return await asyncio.wait_for(self.came.get(), PATIENCE)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def pump(door: EngineDoor) -> AsyncIterator[Pump]:
    pump = Pump(door)
    yield pump
    await pump.stop()


class Ear:
    """What a link tells its owner."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[ToFrontend] = asyncio.Queue()
        self.losses = 0
        self.lost = asyncio.Event()

    def on_lost(self) -> None:
        self.losses += 1
        self.lost.set()

    async def next(self) -> ToFrontend:
        return await asyncio.wait_for(self.messages.get(), PATIENCE)


async def connect(path: Path, ear: Ear, frontend: int = 0) -> EngineLink:
    return await EngineLink.connect(path, frontend, ear.messages.put_nowait, ear.on_lost)


async def test_link_greets_talks_and_hears(pump: Pump, path: Path) -> None:
    ear = Ear()
    link = await connect(path, ear, frontend=2)
    assert link.welcome == WELCOME
    number, hello = await pump.next()
    assert hello == Hello(VERSION, 2, os.getpid())
    link.send(request(4))
    assert await pump.next() == (number, request(4))
    answer = Deltas((TokenDelta(rid=4, index=0, ids=(5,), finish="length"),))
    pump.door.send(number, answer)
    assert await ear.next() == answer
    link.close()
    assert await pump.next() == (number, None)
    await asyncio.wait_for(ear.lost.wait(), PATIENCE)
    link.send(request(5))  # after the end it goes nowhere
    assert ear.losses == 1


async def test_link_hears_of_the_engines_death(path: Path) -> None:
    door = EngineDoor(path, WELCOME)
    pump, ear = Pump(door), Ear()
    await connect(path, ear)
    await pump.next()
    await pump.stop()
    door.close()
    await asyncio.wait_for(ear.lost.wait(), PATIENCE)
    assert ear.losses == 1


async def test_nobody_listens(path: Path) -> None:
    with pytest.raises(OSError):
        await connect(path, Ear())


async def test_engine_of_another_version_is_refused(path: Path) -> None:
    other = Welcome(
        version=VERSION + 1, generation=0, context=1, total_tokens=1, page_size=1,
        max_running=1, vocab=1, pid=1,
    )  # fmt: skip
    door = EngineDoor(path, other)
    pump = Pump(door)
    with pytest.raises(CodecError, match=f"version {VERSION + 1}"):
        await connect(path, Ear())
    await pump.stop()
    door.close()


@pytest.mark.parametrize("answer", [b"", b"\3\0\0\0abc"])
async def test_engine_that_hangs_up_or_talks_nonsense(path: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, str(path)):
        with pytest.raises(ConnectionError):
            await connect(path, Ear())
