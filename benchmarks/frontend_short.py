"""How many short requests a second one frontend on one core answers, and what each weighs.

    python benchmarks/frontend_short.py [--connections 64] [--rate 1500] [--chat] [--stream]

A fake engine (its own process) answers at once with --tokens tokens in one message; a client (its
own process) keeps every connection busy with one request after the other. CPU time per request is
told beside the wall-clock rate, because it does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import frontend_relay as relay
import msgspec

from appliance import paths
from appliance.runtime.wire.channel import EngineDoor
from appliance.runtime.wire.codec import VERSION
from appliance.runtime.wire.delta import Deltas, TokenDelta, Welcome
from appliance.runtime.wire.request import TokenRequest


class Ask(msgspec.Struct):
    connections: int
    requests: int
    rate: float
    tokens: int
    model: str
    chat: bool
    stream: bool


def engine(path: Path) -> None:
    door = EngineDoor(path, Welcome(VERSION, 1, 1 << 20, 1 << 24, 16, 1024, 256, 1))
    print("up", flush=True)
    while True:
        by_peer: dict[int, list[TokenDelta]] = {}
        for peer, message in door.receive(1.0):
            if isinstance(message, TokenRequest):
                ids = tuple(64 + i % 26 for i in range(message.sampling.max_tokens))
                by_peer.setdefault(peer, []).append(TokenDelta(message.rid, 0, ids, "length"))
        for peer, deltas in by_peer.items():
            door.send(peer, Deltas(tuple(deltas), None))


class Load:
    """One request after the other on every connection; with a rate, none before its time."""

    def __init__(self, port: int, connections: int, asked: bytes, rate: float) -> None:
        self._asked, self._rate = asked, rate
        self._sent = 0
        # taken from the front: a connection on which nothing is ever asked is closed after a while
        self._free: deque[socket.socket] = deque()
        self._selector = selectors.DefaultSelector()
        for _ in range(connections):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(sock, selectors.EVENT_READ, [b"", 0.0])
            self._free.append(sock)
        self._start = time.monotonic()

    def run(self, requests: int, stream: bool) -> dict[str, float]:
        took: list[float] = []
        while len(took) < requests:
            wait = self._send(requests)
            for key, _ in self._selector.select(wait):
                state = key.data
                piece = key.fileobj.recv(1 << 16)
                assert piece, "the server closed a connection"
                state[0] += piece
                if complete(state[0], stream):
                    assert state[0].startswith(b"HTTP/1.1 200"), state[0]
                    took.append(time.monotonic() - state[1])
                    self._free.append(key.fileobj)
        seconds = time.monotonic() - self._start
        took.sort()
        return {"seconds": seconds, "p99_ms": 1e3 * took[int(0.99 * len(took))]}

    def _send(self, requests: int) -> float:
        """Sends what is due; seconds until the next is."""
        while self._free and self._sent < requests:
            now = time.monotonic()
            due = self._start + self._sent / self._rate if self._rate else now
            if due > now:
                return due - now
            sock = self._free.popleft()
            # with a rate, a request's time counts from when it was due, not from when it could go
            self._selector.get_key(sock).data[:] = [b"", due]
            sock.sendall(self._asked)
            self._sent += 1
        return 30.0


def client(ask: Ask, port: int, requests: int) -> None:
    words = "What is the capital of France, and since when has it been so?"
    what = {"messages": [{"role": "user", "content": words}]} if ask.chat else {"prompt": words}
    body = json.dumps({**what, "max_tokens": ask.tokens, "stream": ask.stream}).encode()
    path = "/v1/chat/completions" if ask.chat else "/v1/completions"
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    asked = head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body
    print(json.dumps(Load(port, ask.connections, asked, ask.rate).run(requests, ask.stream)))


def complete(data: bytes, stream: bool) -> bool:
    if stream:
        return data.endswith(b"\r\n0\r\n\r\n")
    head, _, body = data.partition(b"\r\n\r\n")
    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return bool(length) and len(body) == int(length)


def spawn(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, args)], text=True, stdout=subprocess.PIPE
    )


def measure(args: Ask) -> None:
    with tempfile.TemporaryDirectory(prefix="short") as temporary:
        run = Path(temporary)
        folder = Path(args.model) if args.model else relay.small_model(run / "model")
        listener = socket.create_server(("127.0.0.1", 0))
        port, fd = listener.getsockname()[1], listener.fileno()
        fake = spawn("engine", paths.engine_socket(run, 0))
        fake.stdout.readline()
        served = relay.spawn("frontend", folder, run, fd, 0, 1, pass_fds=(fd,))
        ask = msgspec.json.encode(args).decode()
        try:
            asyncio.run(relay.until_ready(port))
            spawn("client", ask, port, 500).communicate(timeout=600)
            before = relay.cpu_seconds(served.pid)
            reader = spawn("client", ask, port, args.requests)
            with relay.LoopDelays(run / f"{relay.DELAYS}-0") as delays:
                got = json.loads(reader.communicate(timeout=600)[0])
            spent = relay.cpu_seconds(served.pid) - before
            result = {
                "route": "chat" if args.chat else "completions",
                "stream": args.stream,
                "connections": args.connections,
                "rate": args.rate,
                "requests_s": round(args.requests / got["seconds"]),
                "requests_per_cpu_second": round(args.requests / spent),
                "cpu_us_per_request": round(1e6 * spent / args.requests),
                "p99_ms": round(got["p99_ms"], 1),
                "loop_delay_p99_ms": delays.shown(),
            }
            print(json.dumps(result))
        finally:
            for child in (served, fake):
                child.send_signal(signal.SIGKILL)
                child.wait()


def main() -> None:
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    if role == "engine":
        engine(Path(sys.argv[2]))
    elif role == "client":
        ask = msgspec.json.decode(sys.argv[2], type=Ask)
        client(ask, int(sys.argv[3]), int(sys.argv[4]))
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--connections", type=int, default=64)
        parser.add_argument("--requests", type=int, default=20000)
        parser.add_argument("--rate", type=float, default=0.0, help="requests/s; 0: no limit")
        parser.add_argument("--tokens", type=int, default=8, help="of each answer")
        parser.add_argument("--model", default="", help="folder with a tokenizer; default: tiny")
        parser.add_argument("--chat", action="store_true")
        parser.add_argument("--stream", action="store_true")
        measure(Ask(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
