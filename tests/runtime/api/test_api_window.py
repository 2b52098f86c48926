"""The snapshot for dashboards elsewhere: behind the gate, bounded, and told when nobody answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from served_frontend import Served

from appliance import paths


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
    answer = b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{"state": "ready"}'
    with supervisor(run_dir, answer) as asked:
        got = httpx.get(f"{served.url}/appliance/v1/top{query}")
    assert got.json() == {"state": "ready"}
    assert asked == [f"GET /appliance/v1/top?history={history}&lines=0 HTTP/1.1".encode()]


def test_no_supervisor_is_503(serve: Callable[..., Served], run_dir: Path) -> None:
    served = serve()
    url = f"{served.url}/appliance/v1/top"
    assert httpx.get(url).json()["error"]["code"] == "no_supervisor"
    with supervisor(run_dir, b"HTTP/1.1 500 no\r\n\r\n"):
        assert httpx.get(url).status_code == 503
