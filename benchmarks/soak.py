"""A long soak: random requests, aborts and disconnects until so many tokens have been generated.

    python -m benchmarks.soak [--tokens 1000000] [--limit-s 900] [--record FILE] [--set KEY=VALUE]

Serves the embedded model (or `--model`) in folders of its own. Watched while it runs and once it is
idle again: pages in use, memory of each GPU, and of every process of the run resident memory, file
descriptors and threads. What must be as before is told under `leaks`; exits 1 when there is any.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from appliance.hardware import detect
from benchmarks.serving import Served

LONGEST_IN, LONGEST_OUT = 200, 240
GROWTH = 0.10
"""Memory of a process may grow by this share, and by SLACK, between the first look and the last."""
SLACK = 24 << 20
GPU_SLACK = 64 << 20
"""What a GPU's memory may grow by in the same time."""
FEW = 2
"""Descriptors that the asking itself may hold at the moment of the look."""
KINDS = ("whole", "stream", "chat", "several", "leave", "abort", "cut", "nonsense")
WEIGHTS = (3, 6, 3, 1, 3, 2, 1, 1)


class Caller:
    """Sends one request after the other; counts how each kind ended."""

    def __init__(self, served: Served, seed: int, ended: Counter[str]) -> None:
        self._served, self._rng, self._ended = served, random.Random(seed), ended

    async def go_on(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            (kind,) = self._rng.choices(KINDS, WEIGHTS)
            self._ended[f"{kind}: {await self._one(kind)}"] += 1

    async def _one(self, kind: str) -> str:
        path, body = self._asked(kind)
        if kind == "nonsense":
            body = body[: len(body) // 2]
        reader, writer = await _connected(self._served)
        try:
            writer.write(_head(path, len(body)) + body)
            if kind == "cut":
                await asyncio.sleep(self._rng.random() * 0.02)
                return "gone"
            leaves_after = self._rng.randint(1, 6) if kind in ("leave", "abort") else 0
            pieces, tail = 0, b""
            async for piece in _pieces(reader):
                tail = (tail + piece)[-300:]
                pieces += 1
                if pieces == leaves_after:
                    if kind == "abort":
                        await self._abort(json.loads(body)["rid"])
                        leaves_after = 0
                    else:
                        return "gone"
            return "answered" if tail else "no answer"
        finally:
            writer.transport.abort()  # a reset, not a polite end: what a lost client looks like

    async def _abort(self, name: str) -> None:
        body = json.dumps({"rid": name}).encode()
        reader, writer = await _connected(self._served)
        writer.write(_head("/abort_request", len(body)) + body)
        await reader.read()
        writer.close()

    def _asked(self, kind: str) -> tuple[str, bytes]:
        rng = self._rng
        ids = [rng.randrange(300, 3000) for _ in range(rng.randint(1, LONGEST_IN))]
        if rng.random() < 0.3:  # a beginning that others have too
            ids[:32] = range(400, 400 + min(32, len(ids)))
        most = rng.randint(1, LONGEST_OUT)
        fields: dict[str, Any] = {"max_tokens": most, "temperature": rng.choice((0.0, 0.8, 1.2))}
        fields["stream"] = kind in ("stream", "leave", "chat")
        fields["ignore_eos"] = rng.random() < 0.9
        if kind == "abort":
            sampling = {"max_new_tokens": LONGEST_OUT, "ignore_eos": True}
            name = f"soak-{rng.getrandbits(48):x}"
            asked = {"input_ids": ids, "sampling_params": sampling, "rid": name, "stream": True}
            return "/generate", json.dumps(asked).encode()
        if kind == "chat":
            words = " ".join(f"word{i % 97}" for i in ids[:60])
            fields["messages"] = [{"role": "user", "content": words}]
            return "/v1/chat/completions", json.dumps(fields).encode()
        fields["prompt"] = ids
        if kind == "several":
            fields |= {"n": rng.randint(2, 4), "stop": ["the"], "logprobs": 2, "ignore_eos": False}
        return "/v1/completions", json.dumps(fields).encode()


async def _connected(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(served.url)
    return await asyncio.open_connection(parts.hostname, parts.port)


def _head(path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


async def _pieces(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(1 << 16):
        yield piece


async def metrics(served: Served) -> dict[str, float]:
    """Every sample of /metrics by its name, labels left out and summed."""
    reader, writer = await _connected(served)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    text = (await reader.read()).decode(errors="replace")
    writer.close()
    found: Counter[str] = Counter()
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("appliance_"):
            found[name.partition("{")[0]] += float(value)
    return dict(found)


async def soak(served: Served, given: argparse.Namespace) -> dict[str, Any]:
    ended: Counter[str] = Counter()
    stopping = asyncio.Event()
    callers = [Caller(served, given.seed * 1000 + i, ended) for i in range(given.callers)]
    began, looks = time.monotonic(), []
    tasks = [asyncio.create_task(caller.go_on(stopping)) for caller in callers]
    tokens = 0.0
    while tokens < given.tokens and time.monotonic() - began < given.limit_s:
        await asyncio.sleep(given.every_s)
        for task in tasks:
            if task.done():
                task.result()
        now = await metrics(served)
        tokens = now["appliance_generation_tokens_total"]
        look = {"s": round(time.monotonic() - began, 1), "tokens": int(tokens)}
        look["processes"] = served.looked()  # type: ignore[assignment]
        look["gpus"] = [gpu.memory_used for gpu in detect().gpus]  # type: ignore[assignment]
        looks.append(look)
        if len(looks) % 12 == 1:
            used = now["appliance_kv_used_tokens"]
            print(f"{look['s']:6.0f} s  {tokens:9.0f} tokens  {used:7.0f} used", file=sys.stderr)
    stopping.set()
    await asyncio.gather(*tasks)
    idle = await _until_idle(served)
    return report(looks, idle, served.looked(), ended, time.monotonic() - began)


async def _until_idle(served: Served) -> dict[str, float]:
    """The metrics once nothing runs; those of the last look when that does not come."""
    names = ("appliance_requests_running", "appliance_requests_waiting", "appliance_live_requests")
    for _ in range(240):
        now = await metrics(served)
        if not any(now[name] for name in names) and not now["appliance_kv_used_tokens"]:
            break
        await asyncio.sleep(0.25)
    return now


def report(
    looks: list[dict[str, Any]],
    idle: dict[str, float],
    last: dict[str, dict[str, int]],
    ended: Counter[str],
    seconds: float,
) -> dict[str, Any]:
    """Against the first quarter of the run, when all that is kept for good has been made."""
    first = looks[len(looks) // 4]["processes"]
    processes, leaks = {}, []
    for name, now in last.items():
        then = first.get(name)
        if then is None or then["pid"] != now["pid"]:
            leaks.append(f"{name} was started again")
            continue
        rss = [look["processes"][name]["rss"] for look in looks]
        processes[name] = {
            "rss_mib": [round(b / (1 << 20), 1) for b in (then["rss"], max(rss), now["rss"])],
            "rss_mib_median_of_last_quarter": round(
                statistics.median(rss[-max(1, len(rss) // 4) :]) / (1 << 20), 1
            ),
            "fds": [then["fds"], now["fds"]],
            "threads": [then["threads"], now["threads"]],
        }
        if now["rss"] > then["rss"] * (1 + GROWTH) + SLACK:
            leaks.append(f"{name} memory {then['rss']} -> {now['rss']}")
        for what in ("fds", "threads"):
            if now[what] > then[what] + FEW:
                leaks.append(f"{name} {what} {then[what]} -> {now[what]}")
    gpus = list(zip(*(look["gpus"] for look in looks), strict=True))
    for index, used in enumerate(gpus):
        then, now = used[len(looks) // 4], used[-1]
        if now > then + GPU_SLACK:
            leaks.append(f"GPU {index} memory {then} -> {now}")
    for name in ("requests_running", "requests_waiting", "live_requests", "kv_used_tokens"):
        if idle[f"appliance_{name}"]:
            leaks.append(f"{name} is {idle[f'appliance_{name}']:g} when nothing runs")
    return {
        "tokens": int(idle["appliance_generation_tokens_total"]),
        "seconds": round(seconds, 1),
        "steps": int(idle["appliance_engine_steps_total"]),
        "preemptions": int(idle["appliance_preemptions_total"]),
        "evicted_tokens": int(idle["appliance_evicted_tokens_total"]),
        "pool_tokens": int(idle["appliance_kv_total_tokens"]),
        "ended": dict(sorted(ended.items())),
        "processes": processes,
        "gpus_mib": [
            [round(b / (1 << 20), 1) for b in (used[len(looks) // 4], max(used), used[-1])]
            for used in gpus
        ],
        "leaks": leaks,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--limit-s", type=float, default=900.0)
    parser.add_argument("--callers", type=int, default=24)
    parser.add_argument("--every-s", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    served = Served(
        given.model, [word for one in given.set for word in ("--set", one)]
    ).all_captured()
    print(f"ready in {served.started_s:.1f} s", file=sys.stderr)
    try:
        found = asyncio.run(soak(served, given))
    finally:
        served.close()
    text = json.dumps(found, indent=1)
    print(text)
    if given.record:
        given.record.write_text(text + "\n")
    return 1 if found["leaks"] else 0


if __name__ == "__main__":
    sys.exit(main())
