"""Writes the recording that `appliance top --demo` plays: a made-up server under made-up load.

    python docs/demo/record_demo.py          writes appliance/tui/demo.ndjson.gz anew

Nothing in it was measured. The same seed gives the same bytes, so a test can compare them.
"""

from __future__ import annotations

import gzip
import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from appliance.status import ClientRow, PrefixRow, RequestRow, TopSnapshot
from appliance.tui.source import DEMO, HISTORY_S, recording_head

SEED = 20261120
FRAMES = 60
TICK_S = 0.1
MAX_RUNNING = 36
TOKENS = 1_030_000
CLIENTS = ("open-webui", "key:team-a", "key:team-b", "OpenAI/Python", "litellm", "curl/8.5")
BEGINNINGS = (608, 2176, 1184, 352, 896, 64)
"""Tokens that the requests of each client begin with."""
START = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
TIMES = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0)
SHORT_TIMES = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
LENGTHS = (10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0)
PLAN = {
    "answers": [
        {"field": field, "value": value, "source": source, "reason": reason}
        for field, value, source, reason in (
            ("model.dtype", "bfloat16", "rule", "as the checkpoint has it"),
            ("model.context", 131072, "rule", "the longest that fits"),
            ("engine.device", "cuda", "rule", "two GPUs are there"),
            ("engine.tp", 2, "profile h100x2-bf16", "one model over both GPUs"),
            ("engine.memory_fraction", 0.9, "profile h100x2-bf16", "what graphs need stays free"),
            ("schedule.max_running", MAX_RUNNING, "flag", "--set schedule.max_running=36"),
            ("schedule.chunk", 8192, "profile h100x2-bf16", "decode waits 40 ms at most"),
            ("schedule.depth", 1, "default", "scheduling overlaps the device"),
            ("serve.host", "127.0.0.1", "default", ""),
            ("serve.port", 8000, "default", ""),
            ("serve.frontends", 2, "rule", "one for each eight cores"),
        )
    ]
}


@dataclass
class Request:
    id: str
    client: str
    prompt: int
    cached: int
    wanted: int
    arrived: float
    admitted: float | None = None
    first: float | None = None
    made: float = 0.0
    ended: float | None = None

    def row(self, now: float) -> RequestRow:
        end = now if self.ended is None else self.ended
        made = int(self.made)
        speed = None
        if self.first is not None and end > self.first and made > 1:
            speed = round((made - 1) / (end - self.first), 1)
        phase = "queued" if self.admitted is None else "prefill" if self.first is None else "decode"
        in_parts = phase == "prefill" and self.prompt > 4096
        return RequestRow(
            id=self.id,
            phase="done" if self.ended is not None else phase,  # type: ignore[arg-type]
            prompt_tokens=self.prompt,
            cached_tokens=self.cached if self.first is not None else 0,
            output_tokens=made,
            max_tokens=1024,
            age_s=round(end - self.arrived, 2),
            queue_s=None if self.admitted is None else round(self.admitted - self.arrived, 3),
            ttft_s=None if self.first is None else round(self.first - self.arrived, 3),
            tok_s=speed,
            client=self.client,
            finish="" if self.ended is None else "length" if self.wanted >= 1024 else "stop",
            prefilled_tokens=self.prompt // 2 if in_parts else None,
        )


class World:
    """The made-up server, a tenth of a second at a time."""

    def __init__(self) -> None:
        self.random = random.Random(SEED)
        self.now = 0.0
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.ended: deque[Request] = deque(maxlen=4000)
        self.count = 0
        self.energy = 0.0
        self.generated: deque[tuple[float, float]] = deque()
        self.prefilled: deque[tuple[float, float, float]] = deque()
        self.evicted = 0.0
        self.heat = 61.0
        self.history: dict[str, list[float]] = {}
        self.log: deque[str] = deque(maxlen=40)
        self.hits = dict.fromkeys(CLIENTS, 0)

    def tick(self) -> None:
        self.now += TICK_S
        wave = math.sin(self.now / 140) + 0.5 * math.sin(self.now / 37)
        rate = 5.2 + 1.8 * wave
        if self.random.random() < rate * TICK_S:
            self._arrive()
        budget = 8192 * TICK_S / 0.12
        for request in self.running:
            if request.first is None:
                if budget <= 0:
                    continue
                budget -= request.prompt - request.cached
                late = (request.prompt - request.cached) / 50_000
                request.first = self.now - self.random.uniform(0.0, 0.08) + late
                request.made = 1.0
                self.prefilled.append((self.now, float(request.prompt), float(request.cached)))
            else:
                speed = 96.0 / (1 + len(self.running) / 70) * self.random.uniform(0.96, 1.04)
                step = min(speed * TICK_S, request.wanted - request.made)
                request.made += step
                self.generated.append((self.now, step))
                if request.made >= request.wanted:
                    self._end(request)
        self.running = [r for r in self.running if r.ended is None]
        while self.waiting and len(self.running) < MAX_RUNNING:
            self.waiting[0].admitted = self.now
            self.hits[self.waiting[0].client] += self.waiting[0].cached > 0
            self.running.append(self.waiting.popleft())
        for kept in (self.generated, self.prefilled):
            while kept and kept[0][0] < self.now - 60:
                kept.popleft()

    def _arrive(self) -> None:
        self.count += 1
        prompt = int(min(12000, self.random.lognormvariate(6.9, 0.8)))
        cached = prompt // 16 * 16 if self.random.random() < 0.75 else 0
        self.waiting.append(
            Request(
                id=f"req-{self.count:05d}",
                client=self.random.choice(CLIENTS),
                prompt=prompt,
                cached=int(cached * self.random.uniform(0.6, 0.95)) // 16 * 16,
                wanted=int(min(1024, max(12, self.random.lognormvariate(5.5, 0.7)))),
                arrived=self.now,
            )
        )

    def _end(self, request: Request) -> None:
        request.ended = self.now
        self.ended.append(request)
        if self.random.random() < 0.12:
            self._say("INFO", "frontend-0", f"{request.id} finished: {int(request.made)} tokens")

    def _say(self, level: str, who: str, text: str) -> None:
        at = (START + timedelta(seconds=self.now)).strftime("%H:%M:%S.%f")[:-3]
        self.log.append(f"2026-11-20T{at}Z {level:<8} {who} {text}")

    # What a snapshot says

    def second(self) -> None:
        """One value more in every history."""
        speeds = self.speeds()
        busy = min(1.0, 0.2 + len(self.running) / 40)
        self.heat += (58 + 17 * busy - self.heat) / 30
        values = {
            "gen_tok_s": speeds["gen_tok_s"],
            "prompt_tok_s": speeds["prompt_tok_s"],
            "running": float(len(self.running)),
            "waiting": float(len(self.waiting)),
            "kv_ratio": self.kv()["ratio"],
            "ttft_p50_s": self.spread("ttft")["p50"] or 0.0,
            "cpu_util": 0.06 + 0.1 * busy,
        }
        for gpu in range(2):
            values[f"gpu{gpu}_util"] = min(1.0, busy * (0.97 + 0.03 * gpu))
            values[f"gpu{gpu}_power_w"] = 130 + 520 * busy + 9 * gpu
        values["power_w"] = values["gpu0_power_w"] + values["gpu1_power_w"]
        self.energy += values["power_w"]
        for name, value in values.items():
            self.history.setdefault(name, []).append(round(value, 3))
        if len(self.running) == MAX_RUNNING and self.random.random() < 0.1:
            self._say("WARNING", "engine-0", f"{len(self.waiting)} requests wait for a place")

    def speeds(self) -> dict[str, float]:
        lately = self.now - 2
        return {
            "gen_tok_s": round(sum(n for at, n in self.generated if at > lately) / 2, 1),
            "prompt_tok_s": round(sum(p for at, p, _ in self.prefilled if at > lately) / 2, 1),
            "cached_prompt_tok_s": round(
                sum(c for at, _, c in self.prefilled if at > lately) / 2, 1
            ),
            "req_s": round(sum(r.ended > self.now - 10 for r in self.ended if r.ended) / 10, 1),
        }

    def kv(self) -> dict[str, float]:
        used = float(sum(r.prompt + int(r.made) for r in self.running) * 9)
        kept = min(TOKENS - used, TOKENS * 0.22 * min(1.0, self.now / 300))
        return {
            "used_tokens": used,
            "cached_tokens": round(kept),
            "total_tokens": float(TOKENS),
            "ratio": round(used / TOKENS, 4),
            "preemptions_total": 0.0,
        }

    def seen(self, what: str) -> list[float]:
        """Values of the last minute."""
        ended = [r for r in self.ended if (r.ended or 0) > self.now - 60 and r.first is not None]
        values = {
            "ttft": lambda r: r.first - r.arrived,
            "itl": lambda r: (r.ended - r.first) / max(1.0, r.made - 1),
            "e2e": lambda r: r.ended - r.arrived,
            "queue": lambda r: r.admitted - r.arrived,
            "prompt": lambda r: float(r.prompt),
            "output": lambda r: float(int(r.made)),
        }[what]
        return sorted(values(r) for r in ended)

    def spread(self, what: str) -> dict[str, float | None]:
        values = self.seen(what)
        if not values:
            return {"p50": None, "p90": None, "p99": None}
        return {
            name: round(values[min(len(values) - 1, int(q * len(values)))], 4)
            for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
        }

    def buckets(self, what: str, bounds: Sequence[float]) -> dict[str, list[float]]:
        counts = [0.0] * (len(bounds) + 1)
        for value in self.seen(what):
            counts[bisect_left(bounds, value)] += 1
        return {"bounds": list(bounds), "counts": counts}


def gpus(world: World) -> list[dict[str, Any]]:
    now = {name: values[-1] for name, values in world.history.items()}
    return [
        {
            "index": i,
            "uuid": f"GPU-demo-{i}",
            "name": "NVIDIA H100 80GB HBM3",
            "util": round(now[f"gpu{i}_util"], 2),
            "mem_used_bytes": 74_200_000_000 + i * 120_000_000,
            "mem_total_bytes": 85_520_809_984,
            "power_w": round(now[f"gpu{i}_power_w"]),
            "power_limit_w": 700.0,
            "temp_c": round(world.heat) + 2 * i,
            "sm_mhz": 1980 - 75 * (world.heat > 72 and i),
            "throttle": ["heat"] if world.heat > 72 and i else [],
            "ecc_uncorrected": 0,
            "processes": [],
        }
        for i in range(2)
    ]


def prefixes(world: World) -> list[PrefixRow]:
    """What each client's requests begin with, as if the cache had kept it from the start."""
    rows = [
        PrefixRow(
            number=7 + 11 * at,
            tokens=BEGINNINGS[at],
            own=BEGINNINGS[at],
            hits=world.hits[client],
            rows=sum(r.client == client and r.cached > 0 for r in world.running),
        )
        for at, client in enumerate(CLIENTS)
    ]
    return sorted(rows, key=lambda row: row.saved, reverse=True)


def clients(world: World) -> list[ClientRow]:
    rows = []
    for client in CLIENTS:
        theirs = [r for r in (*world.running, *world.waiting) if r.client == client]
        if theirs:
            rows.append(
                ClientRow(
                    client=client,
                    live=len(theirs),
                    queued=sum(r.admitted is None for r in theirs),
                    prompt_tokens=sum(r.prompt for r in theirs),
                    output_tokens=sum(int(r.made) for r in theirs),
                    tok_s=round(sum(r.row(world.now).tok_s or 0.0 for r in theirs), 1),
                    oldest_s=round(max(world.now - r.arrived for r in theirs), 1),
                )
            )
    return sorted(rows, key=lambda row: (-row.live, row.client))


def alerts(world: World) -> list[dict[str, Any]]:
    found = []
    wait = world.spread("queue")["p99"]

    def add(code: str, since_s: int, message: str, fix: str) -> None:
        since = (START + timedelta(seconds=int(world.now) - since_s)).isoformat()
        found.append(
            {"code": code, "level": "warn", "since": since, "message": message, "fix": fix}
        )

    if wait is not None and wait > 0.5:
        text = f"one request in a hundred waits {wait:.1f} s or more before it is computed"
        add("APL-ALR-005", 20, text, "more GPUs or replicas; fewer clients at once")
    if world.heat > 72:
        text = f"GPU 1 is slowed down: heat, {round(world.heat) + 2} °C"
        add("APL-ALR-003", 35, text, "look at its cooling and power supply")
    return found


def snapshot(world: World, new_seconds: int) -> TopSnapshot:
    kv, speeds = world.kv(), world.speeds()
    hit = sum(c for _, _, c in world.prefilled)
    asked = sum(p for _, p, _ in world.prefilled) or 1.0
    watts = world.history["power_w"][-60:]
    made = world.history["gen_tok_s"][-60:]
    ended = [r for r in world.ended if (r.ended or 0) > world.now - 60]
    steps = float(int(world.now * 70))
    rows = sorted((*world.running, *world.waiting), key=lambda r: -r.arrived)
    return TopSnapshot(
        at=(START + timedelta(seconds=int(world.now))).isoformat().replace("+00:00", "Z"),
        run="demo",
        url="http://127.0.0.1:8000",
        state="ready",
        uptime_s=round(world.now + 7200, 1),
        model={"id": "meta-llama/Llama-3.1-8B-Instruct", "dtype": "bfloat16",
               "revision": "", "max_context": 131072},
        profile={"name": "h100x2-bf16", "tp": 2, "memory_fraction": 0.9, "chunk": 8192,
                 "overrides": {"schedule.max_running": MAX_RUNNING}},
        throughput=speeds,
        queue={"running": len(world.running), "waiting": len(world.waiting),
               "max_running": MAX_RUNNING,
               "oldest_wait_s": round(max((world.now - r.arrived for r in world.waiting),
                                          default=0.0), 2)},
        kv=kv,
        prefix_cache={"hit_ratio_60s": round(hit / asked, 3), "hit_ratio_total": 0.61},
        latency_60s={f"{what}_s": world.spread(what) for what in ("ttft", "itl", "e2e", "queue")},
        errors_60s={"4xx": 2.0, "5xx": 0.0, "cancelled": 1.0},
        gpus=gpus(world),
        cpu={"util": round(world.history["cpu_util"][-1], 3), "mem_used_bytes": 21 << 30,
             "mem_total_bytes": 256 << 30, "load1": 2.4},
        requests=[r.row(world.now) for r in rows],
        alerts=alerts(world),
        history={name: values[-new_seconds:] for name, values in world.history.items()},
        history_seq=int(world.now + 0.5),
        log_tail=list(world.log),
        finished=[r.row(world.now) for r in list(world.ended)[:-13:-1]],
        power={"watts": watts[-1], "tokens_per_joule": round(sum(made) / sum(watts), 3),
               "energy_j": round(world.energy)},
        distributions_60s={
            "ttft_s": world.buckets("ttft", TIMES),
            "itl_s": world.buckets("itl", SHORT_TIMES),
            "e2e_s": world.buckets("e2e", TIMES),
            "queue_s": world.buckets("queue", TIMES),
            "prompt_tokens": world.buckets("prompt", LENGTHS),
            "output_tokens": world.buckets("output", LENGTHS),
        },
        engines=[{"replica": 0.0, "generation": 1.0, "connected": 1.0, "steps": steps,
                  "running": float(len(world.running)), "waiting": float(len(world.waiting)),
                  "used_tokens": kv["used_tokens"], "cached_tokens": kv["cached_tokens"],
                  "total_tokens": kv["total_tokens"]}],
        cache_60s={"hit_tokens": hit, "query_tokens": asked, "evicted_tokens": 4096.0,
                   "preemptions": 0.0},
        finished_60s={"stop": float(sum(r.wanted < 1024 for r in ended)),
                      "length": float(sum(r.wanted >= 1024 for r in ended)),
                      "abort": 1.0, "error": 0.0},
        prefixes=prefixes(world),
        clients=clients(world),
    )  # fmt: skip


def recording() -> bytes:
    """The head and FRAMES seconds, after enough time to fill the history."""
    world = World()
    lines = [msgspec.json.encode(recording_head("DEMO", 1.0, PLAN))]
    for second in range(HISTORY_S + FRAMES):
        for _ in range(round(1 / TICK_S)):
            world.tick()
        world.second()
        if second >= HISTORY_S:
            new = HISTORY_S if second == HISTORY_S else 1
            lines.append(msgspec.json.encode(snapshot(world, new)))
    return b"\n".join(lines) + b"\n"


if __name__ == "__main__":
    DEMO.write_bytes(gzip.compress(recording(), 9, mtime=0))
    print(f"{DEMO}: {DEMO.stat().st_size:,} bytes")
