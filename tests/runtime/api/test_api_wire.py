"""Odd framing, floods and slow senders: a refusal or an end, and others are served as before."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from fake_engine import FakeEngine
from served_frontend import Served

from appliance.runtime.api import linger, server

H = b"host: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + H
BODY = b'{"prompt":"Hi","max_tokens":1}'
SIZE = b"content-length: %d\r\n" % len(BODY)


def exchange(served: Served, *parts: bytes, close: bool = False) -> bytes:
    """Everything that comes back until the server closes, or has sent its first answer whole."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        got = b""
        try:
            for part in parts:
                sock.sendall(part)
            if close:
                sock.shutdown(socket.SHUT_WR)
            while not _whole(got):
                piece = sock.recv(65536)
                if not piece:
                    break
                got += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
        return got


def _whole(got: bytes) -> bool:
    head, _, body = got.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return bool(length) and len(body) >= int(length) and b"connection: close" not in head.lower()


def status_of(got: bytes) -> int:
    return int(got[9:12]) if got else 0


CORPUS: list[tuple[str, bytes, tuple[int, ...]]] = [
    ("plain", POST + SIZE + b"\r\n" + BODY, (200,)),
    ("chunked", POST + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY
     + b"\r\n0\r\n\r\n", (200,)),
    ("trailers are no headers", POST + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(BODY)
     + BODY + b"\r\n0\r\nhost: evil\r\ncontent-type: text/plain\r\n\r\n", (200,)),
    ("length and chunked", POST + SIZE + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", (400,)),
    ("two lengths", POST + SIZE + b"content-length: 3\r\n\r\n" + BODY, (400,)),
    ("negative length", POST + b"content-length: -1\r\n\r\n", (400,)),
    ("length with a sign", POST + b"content-length: +3\r\n\r\n{} ", (400,)),
    ("length past 64 bits", POST + b"content-length: 99999999999999999999\r\n\r\n", (400,)),
    ("length of 10 GB", POST + b"content-length: 10000000000\r\n\r\n", (413,)),
    ("chunk size past 64 bits", POST + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 40
     + b"\r\n", (400,)),
    ("chunk size that is no number", POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n", (400,)),
    ("unknown transfer coding", POST + b"transfer-encoding: snowflake\r\n\r\n", (400,)),
    ("space before colon", b"GET /version HTTP/1.1\r\nhost : localhost\r\n\r\n", (400,)),
    ("folded field", b"GET /version HTTP/1.1\r\n" + H + b"x: a\r\n b\r\n\r\n", (200, 400)),
    ("bare line feeds", b"GET /version HTTP/1.1\nhost: localhost\n\n", (200, 400)),
    ("a NUL in a field", b"GET /version HTTP/1.1\r\n" + H + b"x: a\x00b\r\n\r\n", (400,)),
    ("no host", b"GET /version HTTP/1.1\r\n\r\n", (400,)),
    ("two hosts", b"GET /version HTTP/1.1\r\n" + H + H + b"\r\n", (400,)),
    ("HTTP/1.0 without host", b"GET /livez HTTP/1.0\r\n\r\n", (200, 421, 503)),
    ("absolute target", b"GET http://localhost/version HTTP/1.1\r\n" + H + b"\r\n", (200,)),
    ("absolute target, other host", b"GET http://x/version HTTP/1.1\r\n" + H + b"\r\n", (400,)),
    ("CONNECT", b"CONNECT localhost:443 HTTP/1.1\r\n" + H + b"\r\n", (400,)),
    ("TRACE", b"TRACE / HTTP/1.1\r\n" + H + b"\r\n", (405,)),
    ("OPTIONS *", b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n", (400,)),
    ("unknown method", b"BREW / HTTP/1.1\r\n" + H + b"\r\n", (400,)),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
    ("HTTP/9", b"GET / HTTP/9.9\r\n" + H + b"\r\n", (400,)),
    ("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, (400,)),
    ("h2c upgrade", b"GET /version HTTP/1.1\r\n" + H
     + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n", (200,)),
    ("websocket", b"GET /version HTTP/1.1\r\n" + H
     + b"connection: upgrade\r\nupgrade: websocket\r\n"
     b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", (200,)),
    ("path that is no ASCII", b"GET /\xff\xfe HTTP/1.1\r\n" + H + b"\r\n", (400, 404)),
    ("path of escapes", b"GET /%ff%00%2e%2e/%2e%2e/etc HTTP/1.1\r\n" + H + b"\r\n", (404,)),
    ("model of escapes", b"GET /v1/models/%ff%00%0d%0ax:y HTTP/1.1\r\n" + H + b"\r\n", (404,)),
    ("slash behind", b"GET /version/ HTTP/1.1\r\n" + H + b"\r\n", (404,)),
    ("two slashes", b"GET //version HTTP/1.1\r\n" + H + b"\r\n", (404,)),
    ("fields beyond 100", b"GET /version HTTP/1.1\r\n" + H
     + b"".join(b"x-%d: 1\r\n" % i for i in range(101)) + b"\r\n", (431,)),
    ("200,000 fields", b"GET /version HTTP/1.1\r\n" + H
     + b"".join(b"x-%d: 1\r\n" % i for i in range(200_000)) + b"\r\n", (431,)),
    ("a field of 33 KiB", b"GET /version HTTP/1.1\r\n" + H + b"x: " + b"y" * (33 << 10)
     + b"\r\n\r\n", (431,)),
    ("trailers without end", POST + b"transfer-encoding: chunked\r\n\r\n0\r\n"
     + b"".join(b"x-%d: 1\r\n" % i for i in range(200)), (431,)),
    ("gzip", POST + b"content-encoding: gzip\r\n" + SIZE + b"\r\n" + BODY, (415,)),
]  # fmt: skip


@pytest.mark.parametrize("data, wanted", [c[1:] for c in CORPUS], ids=[c[0] for c in CORPUS])
def test_framing(served: Served, data: bytes, wanted: tuple[int, ...]) -> None:
    got = exchange(served, data)
    assert status_of(got) in wanted, got[:500]
    head, _, body = got.partition(b"\r\n\r\n")
    if status_of(got) >= 400 and b"application/json" in head:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert served.frontend.live == 0
    assert httpx.get(f"{served.url}/version").status_code == 200


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_pieces_of_any_size(served: Served, size: int) -> None:
    data = POST + SIZE + b"\r\n" + BODY
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert status_of(exchange(served, *pieces)) == 200


def test_a_100_mb_header_is_not_kept(served: Served) -> None:
    def flood() -> Iterator[bytes]:
        yield b"GET /version HTTP/1.1\r\n" + H + b"x: "
        for _ in range(100):
            yield b"y" * (1 << 20)

    assert status_of(exchange(served, *flood())) in (431, 0)
    assert httpx.get(f"{served.url}/version").status_code == 200


def test_an_endless_chunked_body(served: Served) -> None:
    def flood() -> Iterator[bytes]:
        yield POST + b"transfer-encoding: chunked\r\n\r\n"
        for _ in range(64):
            yield b"100000\r\n" + b" " * (1 << 20) + b"\r\n"

    assert status_of(exchange(served, *flood())) in (413, 0)
    served.until(lambda: not served.process.server._state.tasks)
    assert served.frontend.live == 0


def test_a_body_shorter_than_its_length_is_a_client_that_left(
    served: Served, engine: FakeEngine
) -> None:
    got = exchange(served, POST + b"content-length: 999\r\n\r\n" + BODY, close=True)
    assert status_of(got) in (0, 400)
    served.until(lambda: not served.process.server._state.tasks)
    assert engine.requests == []


def test_a_slow_body(served: Served, monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> None:
    monkeypatch.setattr(server, "BODY_PACE_S", 0.05)
    got = exchange(served, POST + b"content-length: 999\r\n\r\n{")
    assert status_of(got) == 408 and b"bytes a second" in got
    served.until(lambda: not served.process.server._state.tasks)
    assert engine.requests == []


def test_a_slow_answer_is_no_slow_body(
    served: Served, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of a body stops when it has come, however long the answer takes."""
    monkeypatch.setattr(server, "BODY_PACE_S", 0.02)
    engine.budget = 0
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        sock.sendall(POST + SIZE + b"\r\n" + BODY)
        engine.wait(lambda: len(engine.requests) == 1)
        time.sleep(0.1)  # several turns of the clock that must not run
        engine.budget = None
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("data", [b"", b"\r\n", b"\r\n\r\n"])
def test_a_connection_that_says_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.05)
    assert exchange(served, data) == b""
    served.until(lambda: not served.process.server._state.connections)


def test_empty_lines_do_not_keep_a_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        sock.sendall(b"GET /version HTTP/1.1\r\n" + H + b"\r\n")
        got = b""
        while not _whole(got):
            got += sock.recv(65536)
        monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.05)
        sock.sendall(b"\r\n")
        assert sock.recv(65536) == b""


def test_too_many_connections(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    kept = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(2)]
    served.until(lambda: len(served.process.server._state.connections) == 2)
    assert status_of(exchange(served)) == 503
    for sock in kept:
        sock.close()
    served.until(lambda: not served.process.server._state.connections)
    assert httpx.get(f"{served.url}/version").status_code == 200


def test_a_fault_behind_a_stream_does_not_mix_with_it(served: Served, engine: FakeEngine) -> None:
    """What follows on the connection is nonsense: the stream ends, with nothing written into it."""
    body = b'{"prompt":"Hi","max_tokens":50,"stream":true}'
    engine.budget = 3
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        sock.sendall(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
        got = sock.recv(65536)
        sock.sendall(b"nonsense\r\n\r\n")
        while piece := sock.recv(65536):
            got += piece
    assert got.count(b"HTTP/1.1 ") == 1 and b"bad_request" not in got
    served.until(lambda: served.frontend.live == 0)


def test_a_refusal_reaches_a_client_that_sends_on(served: Served) -> None:
    """The connection is not reset under the answer while the client still sends."""
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
            sock.sendall(POST + b"content-length: %d\r\n\r\n" % (40 << 20))
            for _ in range(40):
                sock.sendall(b" " * (1 << 20))
                time.sleep(0.002)
            got = b""
            while piece := sock.recv(65536):
                got += piece
        assert status_of(got) == 413


def test_a_client_that_never_ends_is_not_read_for_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linger, "LINGER_BYTES", 8 << 20)
    with (
        socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock,
        pytest.raises((ConnectionResetError, BrokenPipeError)),
    ):
        sock.sendall(POST + b"content-length: 10000000000\r\n\r\n")
        for _ in range(1000):
            sock.sendall(b" " * (1 << 20))


@pytest.mark.parametrize("sends", [False, True])
def test_lingering_ends(served: Served, monkeypatch: pytest.MonkeyPatch, sends: bool) -> None:
    """After a silence, and after its whole time however much comes."""
    monkeypatch.setattr(linger, "LINGER_IDLE_S", 0.2)
    monkeypatch.setattr(linger, "LINGER_S", 0.6)
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01")
        while sock.recv(65536):
            pass
        began = time.monotonic()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while time.monotonic() < began + 10:
                time.sleep(0.05 if sends else 0.5)
                sock.sendall(b"x")
