"""A run on a Unix socket: whose it is, what a dead run left there, and what is refused."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from supervisor_stage import make_config

from appliance.errors import BusyError, UsageError
from appliance.supervisor.claim import Listening, bind_unix, listen
from appliance.supervisor.lastword import LastWord
from appliance.supervisor.replica import Death


@pytest.fixture
def place(own_folders: Path) -> Iterator[Path]:
    yield own_folders / "llm.sock"


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_mode_is_what_was_asked_for(place: Path, mode: int) -> None:
    with closing(bind_unix(place, mode)):
        assert stat.S_IMODE(place.stat().st_mode) == mode


def test_what_a_dead_run_left_is_replaced(place: Path) -> None:
    bind_unix(place, 0o600).close()
    assert place.exists()
    with closing(bind_unix(place, 0o600)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))


def test_one_that_lives_is_named(place: Path) -> None:
    with closing(bind_unix(place, 0o600)) as first:
        with pytest.raises(BusyError, match=f"pid {os.getpid()} ") as refused:
            bind_unix(place, 0o600)
        assert refused.value.code == "APL-BSY-004"
        assert refused.value.detail == {"uds": str(place), "pid": os.getpid()}
        assert first.fileno() >= 0 and place.exists()


def test_two_that_begin_at_once(place: Path) -> None:
    """One has it, whoever is first; the folder is locked while they look."""
    bind_unix(place, 0o600).close()  # stale

    def begin() -> socket.socket | BusyError:
        try:
            return bind_unix(place, 0o600)
        except BusyError as e:
            return e

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: begin(), range(8)))
    winners = [one for one in found if isinstance(one, socket.socket)]
    assert len(winners) == 1
    winners[0].close()


def test_one_that_takes_nobody_just_now_lives_too(place: Path) -> None:
    """Its queue is full."""
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as other:
        busy.bind(str(place))
        busy.listen(0)
        other.setblocking(False)
        other.connect(str(place))
        with pytest.raises(BusyError, match="another process"):
            bind_unix(place, 0o600)


def test_a_file_that_is_no_socket_stays(place: Path) -> None:
    place.write_text("mine")
    with pytest.raises(UsageError, match="is no socket"):
        bind_unix(place, 0o600)
    assert place.read_text() == "mine"


def test_no_folder(place: Path) -> None:
    with pytest.raises(UsageError, match="No such file") as refused:
        bind_unix(place / "deeper" / "x.sock", 0o600)
    assert refused.value.hint == f"mkdir -p {place / 'deeper'}"


async def test_the_last_word_of_a_run_that_failed(place: Path) -> None:
    with closing(bind_unix(place, 0o600)) as listener:
        word = LastWord(listener, Death("it died"))
        await word.start()
        reader, writer = await asyncio.open_unix_connection(str(place))
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        word.close()
        assert answer.startswith(b"HTTP/1.1 503 ") and b"it died" in answer
        assert place.exists()


def test_its_file_goes_with_the_run_and_another_ones_stays(place: Path) -> None:
    config = make_config(place.parent)
    serve = msgspec.structs.replace(config.serve, uds=str(place))
    config = msgspec.structs.replace(config, serve=serve)
    at = Listening(config, listen(config))
    assert at.url.startswith("http+unix://%2F")
    at.close()
    assert not place.exists()
    at = Listening(config, listen(config))
    place.unlink()  # by hand; another run takes the place
    with closing(bind_unix(place, 0o600)):
        at.close()
        assert place.exists()
