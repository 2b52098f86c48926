"""The client against servers that answer wrongly, late or never."""

from __future__ import annotations

import asyncio
import inspect
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import appliance
from appliance.client import AsyncClient, Client, error_of
from appliance.errors import (
    ApplianceError,
    BusyError,
    DoesNotFitError,
    EngineError,
    NotRunningError,
)


@contextmanager
def answering(answer: bytes | None) -> Iterator[Client]:
    """A server that sends `answer` to each request; None: it never answers."""
    with tempfile.TemporaryDirectory(prefix="apl") as folder:
        path = Path(folder) / "control.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        held = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                if answer is None:
                    held.append(connection)
                    continue
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):  # a body may come behind its head
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Client(path, timeout=0.5)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()
            for connection in held:
                connection.close()


def http(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body


def test_nobody_there(tmp_path: Path) -> None:
    client = Client(tmp_path / "default" / "control.sock")
    calls: list[Callable[[], object]] = [client.status, client.top, client.plan, client.logs]
    for call in [*calls, client.restart, client.down]:
        with pytest.raises(NotRunningError, match="name 'default'") as caught:
            call()
        assert caught.value.exit_code == 3
    with pytest.raises(NotRunningError):
        next(client.follow_logs())
    with pytest.raises(NotRunningError):
        next(client.events())
    with pytest.raises(NotRunningError):
        client.reload({})


def test_stale_socket_file(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(NotRunningError):
        Client(path).status()


def test_no_answer_in_time() -> None:
    with answering(None) as client, pytest.raises(NotRunningError, match="does not answer"):
        client.status()


def test_refusal_comes_as_the_supervisors_error() -> None:
    body = b'{"error":{"message":"m","hint":"h","code":"APL-X","exit_code":10}}'
    with answering(http(409, body)) as client, pytest.raises(EngineError) as caught:
        client.restart()
    assert (caught.value.message, caught.value.hint, caught.value.code) == ("m", "h", "APL-X")


@pytest.mark.parametrize("body", [b"", b"nope", b"[]", b'{"error": 1}'])
def test_refusal_without_words(body: bytes) -> None:
    with answering(http(500, body)) as client, pytest.raises(ApplianceError, match="500"):
        client.status()


@pytest.mark.parametrize("body", [b"{", b'{"state": "dancing"}', b"[]"])
def test_answer_of_another_version(body: bytes) -> None:
    with answering(http(200, body)) as client, pytest.raises(NotRunningError, match="underst"):
        client.status()


def test_fields_that_are_not_known_are_left_out() -> None:
    with answering(http(200, b'{"state": "ready", "mood": 3}')) as client:
        assert client.status().state == "ready"


def test_garbage_and_broken_off_answers() -> None:
    for answer in (b"\x00\x01\x02\r\n\r\n", b"", b"HTTP/1.1 200 X\r\ncontent-length: 99\r\n\r\n{"):
        with answering(answer) as client, pytest.raises(NotRunningError):
            client.status()


def test_steps_of_down_are_told() -> None:
    answer = b"HTTP/1.1 200 X\r\n\r\ndraining\nstopped"
    told: list[str] = []
    with answering(answer) as client:
        client.down(1.0, told.append)
    assert told == ["draining", "stopped"]


def test_error_of_picks_the_class() -> None:
    assert isinstance(error_of({"message": "m", "exit_code": 7}), DoesNotFitError)
    assert isinstance(error_of({"message": "m", "exit_code": 11}), BusyError)
    assert type(error_of({"message": "m"})) is ApplianceError


def test_both_faces_take_the_same() -> None:
    def of(face: type) -> dict[str, list[inspect.Parameter]]:
        methods = inspect.getmembers(face, inspect.isfunction)
        return {
            name: list(inspect.signature(method).parameters.values())
            for name, method in methods
            if not name.startswith("_")
        }

    assert of(AsyncClient) == of(Client)


async def test_async_face() -> None:
    with answering(http(200, b'{"state": "ready"}')) as client:
        assert (await AsyncClient(client.socket).status()).state == "ready"
    told: list[str] = []
    with answering(b"HTTP/1.1 200 X\r\n\r\ndraining\nstopped") as client:
        again = AsyncClient(client.socket)
        assert [line async for line in again.follow_logs()] == ["draining", "stopped"]
        await again.down(1.0, told.append)
        assert await again.logs() == "draining\nstopped"
    assert told == ["draining", "stopped"]
    with pytest.raises(NotRunningError):
        await AsyncClient(client.socket).restart()


async def test_leaving_a_log_that_says_nothing_more() -> None:
    """The thread that waits for the next line ends with the loop that asked for it."""
    with tempfile.TemporaryDirectory(prefix="apl") as folder:
        path = Path(folder) / "control.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            follow = AsyncClient(path).follow_logs()
            first = asyncio.ensure_future(anext(follow))
            connection, _ = await asyncio.to_thread(listener.accept)
            with connection:
                connection.sendall(b"HTTP/1.1 200 X\r\n\r\none\n")
                assert await first == "one"
                waiting = asyncio.ensure_future(anext(follow))
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                await follow.aclose()
                asked = b""
                while part := await asyncio.to_thread(connection.recv, 65536):
                    asked += part
                assert b"follow=1" in asked


def test_the_package_names_what_scripts_ask_for() -> None:
    assert appliance.Client is Client
    assert appliance.AsyncClient is AsyncClient
    with pytest.raises(AttributeError, match="nothing"):
        vars(appliance)["__getattr__"]("nothing")


def test_client_of_a_run() -> None:
    with tempfile.TemporaryDirectory(prefix="apl") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("APPLIANCE_RUNTIME_DIR", folder)
        assert Client.of_run("night").socket == Path(folder) / "night" / "control.sock"
        with pytest.raises(NotRunningError, match="name 'night'"):
            Client.of_run("night").status()
