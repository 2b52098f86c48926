"""The embedded model on this machine's CPU: streams over HTTP against transformers' generate.

    python -m benchmarks.cpu_default [--rounds 5] [--streams 8] [--input 32] [--output 128]
                                       [--also KEY=VALUE ...]

Each round measures every way once, in turn, so that a busy machine is busy for all of them; the
medians and their ratios are told. Prompts are the same random ids and every answer has the same
length. transformers runs in a process of its own at each thread count and dtype; the best counts.
Ours is the whole way: HTTP, streaming, text. The load average is told: on a quiet machine only the
ways themselves make it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from appliance import paths
from appliance.client import Client

FOLDER = paths.default_model()
Prompts = list[list[int]]


def prompts(seed: int, count: int, length: int) -> Prompts:
    rng = random.Random(seed)
    return [[rng.randrange(300, 3000) for _ in range(length)] for _ in range(count)]


class Transformers:
    """generate in a child process: one line of JSON in (prompts, new tokens), seconds out."""

    def __init__(self, threads: int, dtype: str) -> None:
        self.name = f"transformers, {threads} thread{'s' * (threads > 1)}, {dtype}"
        command = [sys.executable, "-m", "benchmarks.cpu_default", "generate", str(threads), dtype]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def seconds(self, ids: Prompts, new: int) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([ids, new]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def generate(threads: int, dtype: str) -> None:
    """The child process."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=getattr(torch, dtype)).eval()
    for line in sys.stdin:
        prompts_, new = json.loads(line)
        ids = torch.tensor(prompts_)
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        print(time.perf_counter() - began, flush=True)
        assert out.shape[1] == ids.shape[1] + new


class Ours:
    """`up` of the embedded model in folders of its own; completions streamed over HTTP."""

    def __init__(self, settings: list[str]) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="apl")
        names = ("STATE", "RUNTIME", "CONFIG")
        own = {f"APPLIANCE_{n}_DIR": f"{self._home.name}/{n.lower()}" for n in names}
        sets = [word for s in settings for word in ("--set", s)]
        command = [sys.executable, "-m", "appliance", "up", "--port", "0", "-d", "--wait", *sets]
        subprocess.run(command, env=os.environ | own, check=True, stdout=2)
        self._client = Client(Path(own["APPLIANCE_RUNTIME_DIR"]) / "default" / "control.sock")
        self.url = self._client.status().url
        self.name = " ".join(["ours over HTTP", *settings])

    def seconds(self, ids: Prompts, new: int) -> float:
        """All streamed at once, first byte sent to last one read."""
        return asyncio.run(self._all(ids, new))

    async def _all(self, ids: Prompts, new: int) -> float:
        began = time.perf_counter()
        counts = await asyncio.gather(*(self._one(prompt, new) for prompt in ids))
        took = time.perf_counter() - began
        assert set(counts) == {new}, counts
        return took

    async def _one(self, prompt: list[int], new: int) -> int:
        body = {"prompt": prompt, "max_tokens": new, "ignore_eos": True, "temperature": 0}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        data = json.dumps(body).encode()
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        tail = b""
        while piece := await reader.read(1 << 16):
            tail = (tail + piece)[-2000:]
        writer.close()
        usage = tail.rpartition(b'"completion_tokens":')[2].partition(b",")[0]
        return int(usage)

    def memory(self) -> dict[str, float]:
        """MiB of each process."""
        rows = self._client.status().processes
        return {r.role: round((r.memory_bytes or 0) / (1 << 20), 1) for r in rows}

    def close(self) -> None:
        self._client.down(0.0)
        self._home.cleanup()


def measure(given: argparse.Namespace) -> dict[str, Any]:
    n, new = given.streams, given.output
    cores = len(os.sched_getaffinity(0))
    ours = [Ours([]), *(Ours([setting]) for setting in given.also)]
    theirs = [Transformers(t, d) for t in range(1, cores + 1) for d in ("float32", "bfloat16")]
    rates: dict[str, list[float]] = {}

    def add(name: str, tokens: int, seconds: float) -> None:
        rates.setdefault(name, []).append(tokens / seconds)

    loads = []
    try:
        for way in [*ours, *theirs]:
            way.seconds(prompts(1, n, given.input), 16)
        for round_ in range(given.rounds):
            loads.append(os.getloadavg()[0])
            ids = prompts(100 + round_, n, given.input)
            for own in ours:
                add(f"{own.name}: {n} streams", n * new, own.seconds(ids, new))
                add(f"{own.name}: 1 stream", new, own.seconds(prompts(round_, 1, given.input), new))
            for their in theirs:
                add(f"{their.name}: batch of {n}", n * new, their.seconds(ids, new))
                one_by_one = sum(their.seconds([prompt], new) for prompt in ids)
                add(f"{their.name}: one by one", n * new, one_by_one)
        memory = ours[0].memory()
    finally:
        for way in [*ours, *theirs]:
            way.close()
    medians = {name: round(statistics.median(values)) for name, values in rates.items()}
    return {"tok_s": medians, "load": [round(x, 2) for x in loads], "rss_mib": memory}


def best(medians: dict[str, int], begin: str, end: str) -> int:
    return max(v for k, v in medians.items() if k.startswith(begin) and k.endswith(end))


def main() -> None:
    if sys.argv[1:2] == ["generate"]:
        generate(int(sys.argv[2]), sys.argv[3])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--input", type=int, default=32)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument(
        "--also", nargs="*", default=[], metavar="KEY=VALUE", help="ours with a setting, besides"
    )
    given = parser.parse_args()
    found = measure(given)
    rates = found["tok_s"]
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
        print(f"{rate:8d} tok/s  {name}")
    mine = rates[f"ours over HTTP: {given.streams} streams"]
    alone = best(rates, "transformers", "one by one")
    batch = best(rates, "transformers", f"batch of {given.streams}")
    found["against_one_by_one"] = round(mine / alone, 2)
    found["against_batch"] = round(mine / batch, 2)
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
