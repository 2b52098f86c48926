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
from appliance.status import TopSnapshot
from appliance.tui.messages import Planned, Polled
from appliance.tui.panels.run import config_panel
from appliance.tui.poller import Poller
from appliance.tui.remote import Remote
from appliance.tui.text import UNICODE


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
        top = remote.top(7, 500)
        Remote(place).top(1)
    assert top.state == "ready" and top.url == f"http://{place}"
    assert asked == [
        ("/appliance/v1/top?history=7&lines=500", "Bearer secret"),
        ("/appliance/v1/top?history=1&lines=50", None),
    ]
    for change in (lambda: remote.cancel("x"), remote.down):
        with pytest.raises(UsageError):
            change()


def test_the_settings_are_for_an_admins_key():
    with server(200, b'{"answers": []}') as (place, asked):
        assert Remote(place, "secret").plan() == {"answers": []}
    assert asked == [("/appliance/v1/plan", "Bearer secret")]
    with server(403, b'{"error": {"message": "the key may not"}}') as (place, _):
        with pytest.raises(NotAuthorisedError, match="may not"):
            Remote(place, "secret").plan()
    with server(200, b"<html>") as (place, _), pytest.raises(NotFoundError, match="no plan"):
        Remote(place).plan()


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


def test_who_may_not_see_the_settings_is_told_so():
    """And the dashboard goes on with the figures."""

    class Refusing(Remote):
        def top(self, history: int = 900, lines: int = 50) -> TopSnapshot:
            return TopSnapshot(state="ready")

        def plan(self) -> dict:
            raise NotAuthorisedError("the key 'joe' may not see the settings")

    told: list = []
    done = threading.Event()

    def post(message: object) -> None:
        told.append(message)
        if isinstance(message, Polled):
            done.set()

    poller = Poller(Refusing("http://h"), 0.25, post)
    poller.start()
    assert done.wait(20)
    poller.stop()
    (planned,) = [message for message in told if isinstance(message, Planned)]
    (line,) = config_panel(TopSnapshot(), planned.plan, 80, UNICODE)
    assert "may not see the settings" in line[0][1]
