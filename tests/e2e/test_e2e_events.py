"""The events of a run and its dashboard, read over HTTP with an admin's key."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from stand import Stand, until

from appliance import keys
from appliance.errors import NotAuthorisedError
from appliance.tui.remote import Remote


@pytest.fixture
def keyed() -> Iterator[tuple[Stand, dict[str, str]]]:
    stand = Stand()
    folder = stand.home / "config"
    folder.mkdir()
    made = {
        "boss": keys.add_key(folder / "keys.json", "boss", admin=True),
        "joe": keys.add_key(folder / "keys.json", "joe"),
    }
    with stand:
        yield stand, made


class Reader(threading.Thread):
    """Follows the events until they end, from behind `last`."""

    def __init__(self, url: str, key: str, last: str = "") -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self._url = f"{url}/appliance/v1/events"
        self._headers = {"authorization": f"Bearer {key}"} | (
            {"last-event-id": last} if last else {}
        )
        self.leave = threading.Event()
        self.start()

    def run(self) -> None:
        with httpx.stream("GET", self._url, headers=self._headers, timeout=60) as stream:
            assert stream.status_code == 200
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    self.seen.append(json.loads(line[6:]))
                if self.leave.is_set():
                    return

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.seen]


@pytest.mark.slow
def test_a_reader_elsewhere(keyed: tuple[Stand, dict[str, str]]) -> None:
    stand, made = keyed
    url = stand.url
    first = Reader(url, made["boss"])
    until(lambda: "ready" in first.kinds(), "what has been is told")
    first.leave.set()
    stand.strike("engine", signal.SIGKILL)
    first.join(30)
    # a reader that comes back is told what it missed, and nothing twice
    second = Reader(url, made["boss"], first.seen[-1]["id"])
    until(lambda: "ready" in second.kinds(), "the engine is there again")
    ids = [event["id"] for event in [*first.seen, *second.seen]]
    assert len(set(ids)) == len(ids) and "gap" not in second.kinds()
    both = [*first.kinds(), *second.kinds()]
    at = -1
    for kind in ("started", "ready", "death", "restart", "ready"):
        at = both.index(kind, at + 1)
    # the dashboard elsewhere
    boss, joe = Remote(url, made["boss"], timeout=5), Remote(url, made["joe"], timeout=5)
    assert boss.top(1, 50).log_tail and not joe.top(1, 50).log_tail
    assert "serve.max_queue" in [a["field"] for a in boss.plan()["answers"]]
    with pytest.raises(NotAuthorisedError):
        joe.plan()
    # who follows holds nobody up
    done = stand.cli("down", "-t", "20")
    assert done.returncode == 0 and "did not finish in time" not in done.stderr
    second.join(30)
    assert not second.is_alive() and "drain" in second.kinds()
