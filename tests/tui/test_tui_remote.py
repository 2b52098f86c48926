"""A server elsewhere: its snapshot, its key, and every way in which it does not answer."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import fakecontrol
import msgspec
import pytest

from appliance.errors import (
    ApplianceError,
    NotAuthorisedError,
    NotFoundError,
    NotRunningError,
    UsageError,
)
from appliance.tui.remote import Remote


@contextmanager
def server(status: int, body: bytes) -> Iterator[tuple[str, list]]:
    asked: list = []

    class Reply(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("authorization")))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Reply) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{listening.server_port}", asked
        finally:
            listening.shutdown()
            thread.join()


def test_the_snapshot_comes_with_the_url_that_was_asked():
    with server(200, msgspec.json.encode(fakecontrol.snapshot())) as (place, asked):
        remote = Remote(f"http://{place}/v1", "secret")
        top = remote.top(7)
        Remote(place).top(1)
    assert top.state == "ready" and top.url == f"http://{place}"
    assert asked == [
        ("/appliance/v1/top?history=7", "Bearer secret"),
        ("/appliance/v1/top?history=1", None),
    ]
    assert remote.plan() == {}
    for change in (lambda: remote.cancel("x"), remote.down):
        with pytest.raises(UsageError):
            change()


@pytest.mark.parametrize(
    "status, body, kind",
    [
        (401, b'{"error": {"message": "asks for an API key."}}', NotAuthorisedError),
        (404, b"{}", NotFoundError),
        (503, b'{"error": {"message": "no supervisor"}}', NotRunningError),
        (200, b"<html>", NotRunningError),
    ],
)
def test_refusals(status: int, body: bytes, kind: type[ApplianceError]):
    with server(status, body) as (place, _), pytest.raises(kind) as caught:
        Remote(place).top()
    assert caught.value.message and caught.value.hint


def test_nobody_there_and_no_url():
    with pytest.raises(NotRunningError, match="does not answer"):
        Remote("http://127.0.0.1:9").top()
    for wrong in ("ftp://x", "http://", "http://h:port", ""):
        with pytest.raises(UsageError):
            Remote(wrong)
