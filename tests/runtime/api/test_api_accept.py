"""Connections are shared out among frontends, and none waits for one that does not take it."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.runtime.api import accept
from appliance.runtime.api.accept import Acceptor, Shares


class Held(asyncio.Protocol):
    """A connection that tells its frontend's share when it is lost."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares

    def connection_lost(self, exc: Exception | None) -> None:
        self._shares.add(-1)


class Stage:
    """Frontends that share a socket, each with an acceptor, in one loop."""

    def __init__(self, folder: Path, count: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.shares = [Shares(folder / "connections", count, i) for i in range(count)]
        self.acceptors = [
            Acceptor(self.listener.dup(), lambda own=own: Held(own), own) for own in self.shares
        ]
        self.clients: list[socket.socket] = []

    def connect(self, count: int) -> None:
        port = self.listener.getsockname()[1]
        self.clients += [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]

    @property
    def held(self) -> list[int]:
        return [own.held for own in self.shares]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.001)

    def close(self) -> None:
        for acceptor in self.acceptors:
            acceptor.close()
        for sock in (*self.clients, self.listener):
            sock.close()


@pytest.fixture
def stage(tmp_path: Path) -> Callable[[int], Stage]:
    return lambda count: Stage(tmp_path, count)


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_each_gets_its_part_of_a_burst(stage: Callable[[int], Stage], count: int) -> None:
    here = stage(count)
    here.connect(16 * count)  # all wait before anybody looks
    for acceptor in here.acceptors:
        acceptor.start()
    await here.until(lambda: sum(here.held) == 16 * count)
    assert max(here.held) - min(here.held) <= accept.LATE + 1
    here.close()
    await here.until(lambda: not any(here.held))


async def test_one_after_the_other_go_to_who_holds_fewest(stage: Callable[[int], Stage]) -> None:
    here = stage(3)
    for acceptor in here.acceptors:
        acceptor.start()
    for number in range(1, 10):
        here.connect(1)
        await here.until(lambda number=number: sum(here.held) == number)
    assert sorted(here.held) == [3, 3, 3]
    here.close()
    await here.until(lambda: not any(here.held))


async def test_nobody_waits_for_one_that_is_dead(stage: Callable[[int], Stage]) -> None:
    """Its number stands, and is the least."""
    here = stage(2)
    here.acceptors[0].start()
    here.connect(50)
    await here.until(lambda: here.held == [50, 0])
    here.close()
    await here.until(lambda: not any(here.held))


def test_what_a_dead_frontend_left_is_cleared_by_its_successor(tmp_path: Path) -> None:
    first, second = (Shares(tmp_path / "connections", 2, i) for i in range(2))
    first.add(5)
    second.add(3)
    assert first.ahead and not second.ahead
    again = Shares(tmp_path / "connections", 2, 0)
    assert (again.held, again.ahead, second.ahead) == (0, False, True)
    assert (tmp_path / "connections").stat().st_mode & 0o777 == 0o600


async def test_without_files_it_tries_again_later(
    stage: Callable[[int], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "FULL_S", 0.01)
    failed = []

    class Full(socket.socket):
        """A listener that finds no file for a connection, twice."""

        def accept(self) -> tuple[socket.socket, object]:
            if len(failed) < 2:
                failed.append(True)
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    here = stage(1)
    (acceptor,) = here.acceptors
    acceptor._listener = Full(fileno=acceptor._listener.detach())
    acceptor.start()
    here.connect(3)
    await here.until(lambda: here.held == [3])
    assert len(failed) == 2
    here.close()
    await here.until(lambda: not any(here.held))
