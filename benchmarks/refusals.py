"""How soon a frontend refuses what it should not take.

    python benchmarks/refusals.py [--times 20]

The real frontend with the tiny tokenizer on one core; each request on a connection of its own,
timed from its first byte to the whole answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import tempfile
import time
from pathlib import Path

import frontend_relay as relay

from appliance import paths

HOST = b"host: localhost\r\n"
HI = {"prompt": "Hi"}


def post(body: bytes) -> bytes:
    head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"content-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def field(**fields: object) -> bytes:
    return post(json.dumps(HI | fields).encode())


def cases() -> dict[str, tuple[bytes, int]]:
    """Name -> (bytes to send, status of the refusal)"""
    lists = [[1]] * 1025
    return {
        "JSON cut off": (post(b'{"prompt":'), 400),
        "wrong type": (field(temperature="hot"), 400),
        "1,025 biases": (field(logit_bias={str(i): 1 for i in range(1025)}), 400),
        "17 stop strings": (field(stop=["x"] * 17), 400),
        "1,025 prompts": (field(prompt=lists), 400),
        "unknown model": (field(model="gpt-9"), 404),
        "8 MB that is not UTF-8": (post(b'{"prompt":"' + b"\xff" * (8 << 20) + b'"}'), 400),
        "8 MB of brackets": (post(b"[" * (8 << 20)), 400),
        "16 MB of text": (field(prompt="x " * (8 << 20)), 413),
        "a head of 33 KiB": (b"GET / HTTP/1.1\r\n" + HOST + b"x: " + b"y" * (33 << 10), 431),
        "102 fields": (
            b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: 1\r\n" % i for i in range(102)) + b"\r\n",
            431,
        ),
        "two lengths": (
            b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 1\r\n" * 2 + b"\r\n",
            400,
        ),
        "10 GB announced": (post(b"").replace(b"length: 0", b"length: 10000000000"), 413),
        "another host": (b"GET /v1/models HTTP/1.1\r\nhost: evil\r\n\r\n", 421),
    }


def refused_ms(port: int, data: bytes, status: int) -> float:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        start = time.monotonic()
        got = b""
        try:
            sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was sent
        try:
            while b"\r\n\r\n" not in got and (piece := sock.recv(1 << 16)):
                got += piece
        except ConnectionResetError:
            pass
        assert not got or got.startswith(b"HTTP/1.1 %d " % status), got
        return 1e3 * (time.monotonic() - start)


def measure(times: int) -> None:
    with tempfile.TemporaryDirectory(prefix="refuse") as temporary:
        run = Path(temporary)
        listener = socket.create_server(("127.0.0.1", 0))
        port, fd = listener.getsockname()[1], listener.fileno()
        fake = relay.spawn("engine", paths.engine_socket(run, 0), 1, 0)
        fake.stdout.readline()
        folder = relay.small_model(run / "model")
        served = relay.spawn("frontend", folder, run, fd, pass_fds=(fd,))
        try:
            asyncio.run(relay.until_ready(port))
            for name, (data, status) in cases().items():
                took = sorted(refused_ms(port, data, status) for _ in range(times))
                shown = {"median_ms": round(took[times // 2], 1), "most_ms": round(took[-1], 1)}
                print(json.dumps({"case": name, "status": status, **shown}), flush=True)
        finally:
            for child in (served, fake):
                child.send_signal(signal.SIGKILL)
                child.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    measure(parser.parse_args().times)
