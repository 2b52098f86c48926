"""What is told elsewhere: behind the gate, bounded, and told when nobody answers; log, settings and
events to an admin's key alone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from served_frontend import Served

from appliance import keys, paths
from appliance.runtime.api import window

WHOLE = b'HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{"state": "ready"}'


@contextmanager
def supervisor(run_dir: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Answers one request on the control socket with these bytes; what it was asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(paths.control_socket(run_dir)))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(4096).partition(b"\r\n")[0])
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join(10)


@pytest.mark.parametrize(
    "query, history",
    [("", 1), ("?history=7", 7), ("?history=99999", 900), ("?history=x%0d%0a", 1)],
)
def test_the_snapshot_without_log_lines(
    serve: Callable[..., Served], run_dir: Path, query: str, history: int
) -> None:
    served = serve()
    with supervisor(run_dir, WHOLE) as asked:
        got = httpx.get(f"{served.url}/appliance/v1/top{query}")
    assert got.json() == {"state": "ready"}
    assert asked == [f"GET /appliance/v1/top?history={history}&lines=0 HTTP/1.1".encode()]


@pytest.fixture
def keyed(serve: Callable[..., Served], run_dir: Path) -> tuple[Served, dict[str, dict[str, str]]]:
    """A frontend with keys, and the headers of an admin's and of another's."""
    place = run_dir / "keys.json"
    made = {"boss": keys.add_key(place, "boss", admin=True), "joe": keys.add_key(place, "joe")}
    headers = {name: {"authorization": f"Bearer {key}"} for name, key in made.items()}
    return serve(keys_file=str(place)), headers


def test_log_and_settings_are_for_an_admin(
    keyed: tuple[Served, dict[str, dict[str, str]]], run_dir: Path
) -> None:
    served, headers = keyed
    url = f"{served.url}/appliance/v1"
    for who, lines in (("boss", 500), ("joe", 0)):
        with supervisor(run_dir, WHOLE) as asked:
            got = httpx.get(f"{url}/top?lines=99999", headers=headers[who])
        assert got.status_code == 200
        assert asked == [f"GET /appliance/v1/top?history=1&lines={lines} HTTP/1.1".encode()]
        paths.control_socket(run_dir).unlink()
    with supervisor(run_dir, WHOLE) as asked:
        assert httpx.get(f"{url}/plan", headers=headers["boss"]).json() == {"state": "ready"}
    assert asked == [b"GET /appliance/v1/plan HTTP/1.1"]
    for route in ("plan", "events"):
        assert httpx.get(f"{url}/{route}").status_code == 401
        refused = httpx.get(f"{url}/{route}", headers=headers["joe"])
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "admin_only"
        assert "appliance key add NAME --admin" in refused.json()["error"]["message"]
        assert httpx.get(f"{url}/{route}", headers=headers["boss"]).status_code == 503


def test_nobody_is_an_admin_where_there_are_no_keys(serve: Callable[..., Served]) -> None:
    served = serve()
    for route in ("plan", "events"):
        refused = httpx.get(f"{served.url}/appliance/v1/{route}")
        assert refused.status_code == 403 and "without a key" in refused.text


@pytest.mark.parametrize(
    ("last", "after"),
    [("", ""), ("1a2b-17", "1a2b-17"), ("x y", "0-0"), ("1-2&history=9", "0-0")],
)
def test_events_are_handed_on(
    keyed: tuple[Served, dict[str, dict[str, str]]], run_dir: Path, last: str, after: str
) -> None:
    served, headers = keyed
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b"6\r\nid: 1\n\r\n8;x=y\r\ndata: 2\n\r\n0\r\n\r\n"
    with supervisor(run_dir, head + body) as asked:
        more = {"last-event-id": last} if last else {}
        got = httpx.get(
            f"{served.url}/appliance/v1/events?history=7", headers=headers["boss"] | more
        )
    assert got.text == "id: 1\ndata: 2\n"
    assert got.headers["content-type"].startswith("text/event-stream")
    assert asked == [f"GET /appliance/v1/events?after={after}&history=7&follow=1 HTTP/1.1".encode()]


def test_who_follows_holds_up_no_drain(
    keyed: tuple[Served, dict[str, dict[str, str]]], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, headers = keyed
    monkeypatch.setattr(window, "STREAMS", 1)
    url = f"{served.url}/appliance/v1/events"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(paths.control_socket(run_dir)))
        listener.listen()
        held = []

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n6\r\nid: 1\n\r\n")
            held.append(connection)  # and says nothing more

        thread = threading.Thread(target=answer)
        thread.start()
        with httpx.stream("GET", url, headers=headers["boss"]) as stream:
            pieces = stream.iter_text()
            assert next(pieces) == "id: 1\n"
            assert httpx.get(url, headers=headers["boss"]).status_code == 429
            served.call(served.process.drain())
            assert list(pieces) == []
        thread.join(10)
        held[0].close()
    served.until(lambda: served.process.server.busy == 0)


def test_no_supervisor_is_503(serve: Callable[..., Served], run_dir: Path) -> None:
    served = serve()
    url = f"{served.url}/appliance/v1/top"
    assert httpx.get(url).json()["error"]["code"] == "no_supervisor"
    with supervisor(run_dir, b"HTTP/1.1 500 no\r\n\r\n"):
        assert httpx.get(url).status_code == 503
