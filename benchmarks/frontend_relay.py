"""How many streamed tokens a second one frontend on one core relays, and what it weighs; several.

    python benchmarks/frontend_relay.py [--streams 64] [--tokens 1000] [--rate 20000] [--chat]
        [--frontends 1]

A fake engine (its own process) gives every stream one token per message at --rate tokens/s in all;
a client (its own process) reads raw bytes. The frontend is the real one: real HTTP, real tokenizer,
its own process, bound to one core. Several frontends share a socket, and have as many engines and
clients. CPU time per token is told beside the wall-clock rate, because it does not depend on what
else the machine does; tokens_per_event above 1 says that a frontend fell behind and joined tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from appliance import paths
from appliance.runtime.api.server import raise_file_limit
from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig, ServeConfig
from appliance.runtime.wire.channel import EngineDoor
from appliance.runtime.wire.codec import VERSION
from appliance.runtime.wire.delta import Deltas, StepStats, TokenDelta, Welcome
from appliance.runtime.wire.request import TokenRequest
from appliance.status import StatusPipe

TICK = os.sysconf("SC_CLK_TCK")
DELAYS = "loop-delays"
GATHER_S = 1.0
"""After which no more streams are waited for."""


def engine(path: Path, streams: int, rate: float) -> None:
    """Waits for all streams, or till no more come, then steps them together until each has its
    max_tokens. streams: of all engines; rate: of this one."""
    welcome = Welcome(VERSION, 1, 1 << 20, 1 << 24, 16, streams, 256, os.getpid())
    door = EngineDoor(path, welcome)
    live: dict[int, tuple[int, int]] = {}
    print("up", flush=True)
    while True:
        come = len(live)
        for peer, message in door.receive(GATHER_S):
            if isinstance(message, TokenRequest):
                live[message.rid] = (peer, message.sampling.max_tokens)
        if not live or (len(live) < streams and len(live) > come):
            continue
        start, index = time.monotonic(), 0
        longest = max(n for _, n in live.values())
        while index < longest:
            if rate:
                time.sleep(max(0.0, start + index * len(live) / rate - time.monotonic()))
            by_peer: dict[int, list[TokenDelta]] = {}
            for rid, (peer, tokens) in live.items():
                finish = "length" if index == tokens - 1 else ""
                id = 64 + (index * 7 + rid) % 26
                by_peer.setdefault(peer, []).append(TokenDelta(rid, index, (id,), finish))
            for peer, deltas in by_peer.items():
                door.send(peer, Deltas(tuple(deltas), StepStats() if index % 20 == 0 else None))
            index += 1
            # Step on only when the frontend has taken the last one, as a device's pace would.
            while any(p.backlog for p in door._peers.values()):
                door.receive(0.001)
        live.clear()


def frontend(folder: Path, run: Path, fd: int, index: int, count: int) -> None:
    import uvloop

    from appliance.runtime.api.app import serve
    from appliance.runtime.model.registry import read_spec
    from appliance.runtime.text.worker import TextWorker

    config = RuntimeConfig(
        run="relay",
        dir=str(run),
        model=ModelConfig(path=str(folder), id="relay", context=1 << 20),
        serve=ServeConfig(frontends=count),
        engine=EngineConfig(replicas=count),
    )
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    os.sched_setaffinity(0, {cores[index % len(cores)]})
    text = TextWorker(folder, read_spec(folder), "relay")

    async def probed() -> None:
        probe = asyncio.create_task(watch_loop(run / f"{DELAYS}-{index}"))
        await serve(config, text, index, fd, StatusPipe())
        probe.cancel()

    uvloop.run(probed())


async def watch_loop(path: Path) -> None:
    """How late a task of the loop comes that wants to run every 5 ms; told anew each second."""
    late: list[float] = []
    told = time.monotonic()
    while True:
        due = time.monotonic() + 0.005
        await asyncio.sleep(0.005)
        now = time.monotonic()
        late.append(max(0.0, now - due))
        if now - told >= 1.0:
            told, ordered = now, sorted(late)
            path.write_text(f"{1e3 * ordered[int(0.99 * len(ordered))]:.1f}")
            late.clear()


class LoopDelays:
    """The seconds' p99s of the frontend's loop, in ms, taken while `with` lasts."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, 0
        self._p99s: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> LoopDelays:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def shown(self) -> list[float]:
        """[of the median second, of the worst]"""
        ordered = sorted(self._p99s) or [0.0]
        return [ordered[len(ordered) // 2], ordered[-1]]

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            stamp = self._path.stat().st_mtime_ns if self._path.exists() else 0
            if self._seen and stamp != self._seen:
                self._p99s.append(float(self._path.read_text() or 0))
            self._seen = stamp


def client(port: int, streams: int, tokens: int, chat: bool) -> None:
    """Opens every stream, reads until all are done, prints seconds, events and bytes."""
    what = {"messages": [{"role": "user", "content": "Hi"}]} if chat else {"prompt": "Hi"}
    body = json.dumps({**what, "max_tokens": tokens, "stream": True}).encode()
    path = "/v1/chat/completions" if chat else "/v1/completions"
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    )
    raise_file_limit()
    selector = selectors.DefaultSelector()
    for _ in range(streams):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(head + body)
        selector.register(sock, selectors.EVENT_READ, bytearray())
    first = events = size = 0.0
    buffer = bytearray(1 << 18)
    open_ = streams
    while open_:
        for key, _ in selector.select(30):
            n = key.fileobj.recv_into(buffer)
            if not first:
                first = time.monotonic()
            data = key.data + buffer[:n]
            events += data.count(b"data: ")
            size += n
            key.data[:] = data[-5:]
            if not n or data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                selector.unregister(key.fileobj)
                open_ -= 1
    seconds = time.monotonic() - first
    print(json.dumps({"seconds": seconds, "events": events - streams, "bytes": size}))


def small_model(folder: Path) -> Path:
    tokenizer = Tokenizer(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    shape = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "num_hidden_layers": 1,
        "intermediate_size": 8, "vocab_size": 256, "num_attention_heads": 1,
        "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 1 << 20,
        "eos_token_id": 255,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def spawn(*args: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *map(str, args)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, **options)


def measure(args: argparse.Namespace) -> None:
    count = args.frontends
    with tempfile.TemporaryDirectory(prefix="relay") as temporary:
        run = Path(temporary)
        folder = Path(args.model) if args.model else small_model(run / "model")
        listener = socket.create_server(("127.0.0.1", 0))
        engines = [
            spawn("engine", paths.engine_socket(run, i), args.streams, args.rate / count)
            for i in range(count)
        ]
        for fake in engines:
            fake.stdout.readline()
        fd, port = listener.fileno(), listener.getsockname()[1]
        served = [
            spawn("frontend", folder, run, fd, i, count, pass_fds=(fd,)) for i in range(count)
        ]
        try:
            asyncio.run(until_ready(port, count))
            while not all(paths.frontend_snapshot(run, i).exists() for i in range(count)):
                time.sleep(0.05)
            result = relayed(args, run, port, [child.pid for child in served])
            print(json.dumps(result))
        finally:
            for child in (*served, *engines):
                child.send_signal(signal.SIGKILL)
                child.wait()


def relayed(args: argparse.Namespace, run: Path, port: int, pids: list[int]) -> dict[str, object]:
    """What all streams took, of several frontends together and of each."""
    count = len(pids)
    before = [cpu_seconds(pid) for pid in pids]
    kind = "chat" if args.chat else "completions"
    parts = [args.streams // count + (i < args.streams % count) for i in range(count)]
    readers = [spawn("client", port, part, args.tokens, kind) for part in parts]
    with LoopDelays(run / f"{DELAYS}-0") as delays:
        got = [json.loads(reader.communicate(timeout=600)[0]) for reader in readers]
    spent = [cpu_seconds(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
    tokens = args.streams * args.tokens
    return {
        "route": kind,
        "frontends": count,
        "streams": args.streams,
        "tokens": tokens,
        "tok_s": round(tokens / max(g["seconds"] for g in got)),
        "tok_s_per_cpu_second": round(tokens / sum(spent)),
        "cpu_us_per_token": round(1e6 * sum(spent) / tokens, 1),
        "tokens_per_event": round(tokens / sum(g["events"] for g in got), 2),
        "share_of_cpu_time": [round(s / sum(spent), 2) for s in spent],
        "loop_delay_p99_ms": delays.shown(),
        "rss_mib": round(max(memory_mib(pid) for pid in pids), 1),
    }


async def until_ready(port: int, count: int = 1) -> None:
    """Until a frontend has all engines: it says so in /metrics."""
    connected = b'appliance_engines_connected{model_name="relay"} %d' % count
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            data = await reader.read()
            writer.close()
            if connected in data:
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)


def main() -> None:
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    if role == "engine":
        engine(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    elif role == "frontend":
        frontend(Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:7]))
    elif role == "client":
        client(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "chat")
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--streams", type=int, default=64)
        parser.add_argument("--tokens", type=int, default=1000, help="of each stream")
        parser.add_argument("--rate", type=float, default=20000.0, help="tokens/s; 0: no limit")
        parser.add_argument("--model", default="", help="folder with a tokenizer; default: tiny")
        parser.add_argument("--chat", action="store_true")
        parser.add_argument("--frontends", type=int, default=1)
        measure(parser.parse_args())


if __name__ == "__main__":
    main()
