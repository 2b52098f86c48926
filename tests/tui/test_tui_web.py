"""The dashboard in a browser: what a browser does, over its websocket; and who is not let in."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import aiohttp
import pytest
from yarl import URL


@pytest.fixture
def address() -> Iterator[URL]:
    """As `appliance top --demo --web` prints it."""
    command = [sys.executable, "-m", "appliance", "--json", "top", "--demo", "--web"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as top:
        assert top.stdout is not None
        try:
            yield URL(json.loads(top.stdout.readline())["url"])
        finally:
            top.send_signal(signal.SIGINT)
            assert top.wait(30) == 130


async def sees(socket: aiohttp.ClientWebSocketResponse, *wanted: str) -> str:
    """What the page is told to draw, as soon as all the words are in it."""
    seen = ""
    while not all(word in seen for word in wanted):
        message = await socket.receive(timeout=60)
        assert message.type is aiohttp.WSMsgType.BINARY, (message.type, seen[-500:])
        seen += message.data.decode(errors="replace")
    return seen


async def test_a_browser_sees_presses_keys_and_gets_a_new_size(address: URL) -> None:
    assert address.host == "127.0.0.1" and len(address.query["key"]) >= 16
    jar = aiohttp.CookieJar(unsafe=True)  # it is an address, not a name
    async with aiohttp.ClientSession(cookie_jar=jar) as browser:
        async with browser.get(address) as page:
            text = await page.text()
            assert page.status == 200 and 'id="terminal"' in text
            assert "http" not in text.replace(f"ws://{address.authority}", "")
            assert "key" not in page.url.query
            assert "default-src 'self'" in page.headers["content-security-policy"]
        async with browser.get(address.origin() / "static/js/textual.js") as script:
            assert script.status == 200
        here = address.origin() / "ws" % {"width": 100, "height": 30}
        async with browser.ws_connect(here) as socket:
            await sees(socket, "DEMO READY", "gen tok/s", "q")
            await socket.send_json(["stdin", "3"])
            await sees(socket, "tokens/J")
            await socket.send_json(["resize", {"width": 30, "height": 8}])
            await sees(socket, "needs 40×10")
            await socket.send_json(["resize", {"width": 100, "height": 30}])
            await sees(socket, "tokens/J")
            await socket.send_json(["stdin", "q"])
            ended = await socket.receive(timeout=60)
            while ended.type is aiohttp.WSMsgType.BINARY:
                ended = await socket.receive(timeout=60)
            assert ended.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)


async def test_nobody_else_is_let_in(address: URL) -> None:
    place = address.origin()
    known = {"cookie": f"appliance_top={address.query['key']}"}
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as stranger:

        async def status(path: str, **headers: str) -> int:
            async with stranger.get(place / path, headers=headers) as answer:
                return answer.status

        assert await status("") == 403
        assert await status("static/js/textual.js") == 403
        assert await status("", cookie="appliance_top=guess") == 403
        assert await status("", **known) == 200
        assert await status("", **known, origin="http://x") == 403
        assert await status("", **known, host="example.com") == 421
        for headers in ({}, {**known, "origin": "http://x"}):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await stranger.ws_connect(place / "ws", headers=headers)
            assert refused.value.status == 403


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "appliance", "top", "--demo", "--web", "--web-port", port],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2 and port in done.stderr and "--web-port" in done.stderr
