"""Limits of the connection layer, and the process: signals, draining, weight."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
from fake_engine import FakeEngine
from served_frontend import Served, make_config
from sse_reader import events, expected
from tiny_vocabularies import byte_level, config, write_folder

from appliance import paths
from appliance.runtime.api import server
from appliance.runtime.config import write_config
from appliance.runtime.text.worker import TextWorker
from appliance.status import Beat, Ready, decode_child_message


def raw(served: Served, data: bytes) -> bytes:
    """What comes back until the server closes or has answered."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        try:
            sock.sendall(data)
        except OSError:
            pass
        got = b""
        try:
            while b"\r\n\r\n" not in got:
                piece = sock.recv(65536)
                if not piece:
                    break
                got += piece
        except ConnectionResetError:
            pass
        return got


GET = b"GET /version HTTP/1.1\r\nhost: localhost\r\n"


@pytest.mark.parametrize(
    "data, status",
    [
        (GET + b"\r\n", 200),
        (GET + b"".join(b"x-%d: 1\r\n" % i for i in range(101)) + b"\r\n", 431),
        (GET + b"x: " + b"y" * (33 << 10) + b"\r\n\r\n", 431),
        (GET + b"x: " + b"y" * (1 << 20), 431),
        (b"GET /" + b"y" * (33 << 10) + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 431),
        (b"GET /version HTTP/1.1\r\n\r\n", 400),
        (GET + b"host: y\r\n\r\n", 400),
        (GET + b"bad\x00name: 1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_heads(served: Served, data: bytes, status: int) -> None:
    assert raw(served, data).startswith(b"HTTP/1.1 %d " % status)
    assert httpx.get(f"{served.url}/version").status_code == 200


def test_a_head_that_drips(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.05)
    assert raw(served, b"GET / HTTP/1.1\r\nhost").startswith(b"HTTP/1.1 408 ")


def test_a_reader_that_stops_is_dropped(
    served: Served, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "WRITE_STALL_S", 0.1)
    served.process.server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    engine.chunk = 50
    body = json.dumps(
        {"prompt": "a", "max_tokens": 500, "n": 16, "stream": True, "logprobs": 20}
    ).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", served.port))
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
        sock.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        state = served.process.server._state
        engine.wait(lambda: len(engine.requests) == 16)
        served.until(lambda: not state.connections)
        served.until(lambda: served.frontend.live == 0 and not state.tasks)


def test_keep_alive_serves_many_requests_on_one_connection(served: Served) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            body = {"prompt": "Hello", "max_tokens": 2}
            assert client.post(f"{served.url}/v1/completions", json=body).status_code == 200
        assert len(served.process.server._state.connections) == 1


PROGRAM = """
import asyncio, sys
from pathlib import Path
from appliance.runtime.api.app import serve
from appliance.runtime.config import read_config
from appliance.runtime.model.registry import read_spec
from appliance.runtime.text.worker import TextWorker
from appliance.status import StatusPipe
config = read_config(Path(sys.argv[1]))
folder = Path(config.model.path)
text = TextWorker(folder, read_spec(folder), config.model.id)
asyncio.run(serve(config, text, 0, int(sys.argv[2]), StatusPipe(int(sys.argv[3]))))
loaded = [m for m in ("torch", "triton", "flashinfer") if m in sys.modules]
status = Path("/proc/self/status").read_text()
print("loaded", loaded)
print("peak", next(l for l in status.splitlines() if l.startswith("VmRSS")).split()[1])
"""


def test_a_frontend_process_from_start_to_drain(
    run_dir: Path, engine: FakeEngine, text_room: TextWorker, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model", byte_level())
    (folder / "config.json").write_text(json.dumps(config(400)))
    settings = make_config(run_dir)
    model = msgspec.structs.replace(settings.model, path=str(folder))
    write_config(msgspec.structs.replace(settings, model=model), paths.config_file(run_dir))
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    read_end, write_end = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(paths.config_file(run_dir)), str(listener.fileno()),
         str(write_end)],
        pass_fds=(listener.fileno(), write_end),
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    os.close(write_end)
    try:
        with os.fdopen(read_end, "rb") as status:
            messages = iter(status)
            for line in messages:
                if isinstance(decode_child_message(line), Ready):
                    break
            assert httpx.get(f"{url}/health").status_code == 503
            engine.budget = 8
            engine.start()
            for line in messages:
                if isinstance(decode_child_message(line), Beat):
                    break
            body = {"prompt": "Hello", "max_tokens": 60, "stream": True}
            _until_accepted(url, engine)
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as response:
                assert response.status_code == 200
                child.send_signal(signal.SIGTERM)
                _until_draining(url)
                engine.budget = None
                chunks = events(response.read().decode())
        text = "".join(c["choices"][0]["text"] for c in chunks)
        assert text == expected(text_room, "Hello", 60)
        out, _ = child.communicate(timeout=30)
        assert child.returncode == 0
    finally:
        child.kill()
        child.wait()
        listener.close()
    assert "loaded []" in out
    peak = re.search(r"peak (\d+)", out)
    assert peak is not None and int(peak.group(1)) < 150 << 10


def _until_accepted(url: str, engine: FakeEngine) -> None:
    """The child finds the engine within its retry time; each refusal says when to come again."""
    for _ in range(400):
        engine.budget = 8
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 1})
        if answer.status_code == 200:
            engine.budget = 8
            return
    raise AssertionError(answer.text)


def _until_draining(url: str) -> None:
    for _ in range(400):
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 1})
        if answer.json().get("error", {}).get("code") == "draining":
            return
    raise AssertionError(answer.text)
