"""TopSnapshot: what the frontends publish, the GPUs and the run's state, once a second."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psutil
from msgspec import Struct

from appliance import paths
from appliance.hardware import Gpu, Gpus, host_memory
from appliance.metrics import Dump, quantile, subtract
from appliance.status import EngineState, FrontendSnapshot, PrefixRow
from appliance.supervisor.devices import LIMIT_S, Holder, holders

HISTORY_S = 900
WINDOW_S = 60
LATE_S = 5.0
RATE_S = 2.0
"""Rates are over this time, so that a frontend's 1 Hz report does not show as a saw."""

_LATENCIES = {
    "ttft_s": "appliance_time_to_first_token_seconds",
    "itl_s": "appliance_inter_token_latency_seconds",
    "e2e_s": "appliance_e2e_request_latency_seconds",
    "queue_s": "appliance_request_queue_time_seconds",
}
_LENGTHS = {
    "prompt_tokens": "appliance_request_prompt_tokens",
    "output_tokens": "appliance_request_generation_tokens",
}
_HISTORY = (
    "gen_tok_s", "prompt_tok_s", "running", "waiting", "kv_ratio", "ttft_p50_s", "power_w",
    "cpu_util",
)  # fmt: skip
_XIDS_KEPT = 256
_PREFIXES_SHOWN = 16
_STATE_OF_ENGINE = ("running", "waiting", "used_tokens", "cached_tokens", "total_tokens")


class Moment(Struct, frozen=True):
    """What was read at one time. metrics: by (frontend, pid), with the time it was written.
    engines: the newest state of each replica."""

    at: float
    metrics: dict[tuple[int, int], tuple[float, Dump]]
    engines: dict[int, EngineState]


class Sampler:
    """Reads the frontends' files and the sensors once a second; keeps the last 15 minutes."""

    def __init__(self, run: Path, *, gpus: bool) -> None:
        self._run = run
        self._moments: deque[Moment] = deque(maxlen=WINDOW_S + 2)
        self._sensors = Gpus() if gpus else None
        self._sampling: asyncio.Task[None] | None = None
        self._lookers: list[Callable[[], object]] = []
        self.gpus: tuple[Gpu, ...] = ()
        self.xids: deque[tuple[float, int, int]] = deque(maxlen=_XIDS_KEPT)
        """(Unix time, GPU, number) of critical errors."""
        self.cpu: dict[str, int | float | None] = {}
        self.frontends: list[FrontendSnapshot] = []
        self.history: dict[str, deque[float]] = {name: deque(maxlen=HISTORY_S) for name in _HISTORY}
        self.history_seq = 0
        self.latency: dict[str, dict[str, float | None]] = {}
        """Quantiles over the last minute; None where nothing ended."""
        self.distributions: dict[str, dict[str, list[float]]] = {}
        self.energy_j = 0.0

    async def run(self) -> None:
        """Samples for ever, on the second."""
        while True:
            self.sample(time.time())
            for look in self._lookers:
                look()
            if self._sensors is not None and (self._sampling is None or self._sampling.done()):
                self._sampling = asyncio.create_task(self._read_gpus())
            await asyncio.sleep(1.0 - time.time() % 1.0)

    def after_each(self, look: Callable[[], object]) -> None:
        """Calls `look` whenever there is something new to see."""
        self._lookers.append(look)

    async def freed(self, pids: list[int], limit_s: float = LIMIT_S) -> list[Holder] | None:
        """Returns when the GPUs hold nothing of these processes, or after `limit_s` what they do.
        None: there is no GPU to ask."""
        if self._sensors is None:
            return None
        end = time.monotonic() + limit_s
        while True:
            await self._read_gpus()
            held = holders(self.gpus, pids)
            if not held or time.monotonic() >= end:
                return held if self.gpus else None
            await asyncio.sleep(0.1)

    def sample(self, now: float) -> None:
        """now: Unix time."""
        self.frontends = read_frontends(self._run)
        self._moments.append(_moment(now, self.frontends))
        self._look_back()
        total, available = host_memory()
        self.cpu = {
            "util": psutil.cpu_percent(None) / 100,
            "mem_used_bytes": total - available,
            "mem_total_bytes": total,
            "load1": psutil.getloadavg()[0],
        }
        self._remember()

    def _look_back(self) -> None:
        grown = {short: self._growth(name) for short, name in (_LATENCIES | _LENGTHS).items()}
        self.latency = {short: _quantiles(*grown[short]) for short in _LATENCIES}
        self.distributions = {
            short: {"bounds": bounds, "counts": counts[:-1]}
            for short, (counts, bounds) in grown.items()
        }

    def _remember(self) -> None:
        rates, queue, watts = self.throughput(), self.queue(), self.watts()
        self.energy_j += (watts or 0.0) * self._step_s()
        now = {
            "gen_tok_s": rates["gen_tok_s"],
            "prompt_tok_s": rates["prompt_tok_s"],
            "running": queue["running"],
            "waiting": queue["waiting"],
            "kv_ratio": self.kv()["ratio"],
            "ttft_p50_s": self.latency["ttft_s"]["p50"] or 0.0,
            "power_w": watts or 0.0,
            "cpu_util": self.cpu["util"] or 0.0,
        }
        for gpu in self.gpus:
            now[f"gpu{gpu.index}_util"] = gpu.utilization or 0.0
            now[f"gpu{gpu.index}_power_w"] = gpu.power_w or 0.0
        for name, value in now.items():
            # a GPU that is seen later has been at nothing before
            missing = deque([0.0] * min(self.history_seq, HISTORY_S), maxlen=HISTORY_S)
            self.history.setdefault(name, missing).append(round(value, 3))
        self.history_seq += 1

    def _step_s(self) -> float:
        """Seconds since the sample before; a suspended machine drew no power that we know of."""
        if len(self._moments) < 2:
            return 0.0
        return min(self._moments[-1].at - self._moments[-2].at, 2.0)

    def recent(self, seconds: int) -> dict[str, list[float]]:
        """The last seconds of the history."""
        count = max(0, min(seconds, HISTORY_S))
        return {name: list(values)[len(values) - count :] if count < len(values) else list(values)
                for name, values in self.history.items()}  # fmt: skip

    def watts(self) -> float | None:
        known = [gpu.power_w for gpu in self.gpus if gpu.power_w is not None]
        return sum(known) if known else None

    def power(self) -> dict[str, float | None]:
        watts = self.watts()
        if watts is None:
            return {}
        drawn = list(self.history["power_w"])[-WINDOW_S:]
        made = list(self.history["gen_tok_s"])[-WINDOW_S:]
        joules = sum(drawn)
        per_joule = sum(made) / joules if joules else None
        return {"watts": watts, "tokens_per_joule": per_joule, "energy_j": self.energy_j}

    def engines(self) -> list[dict[str, float]]:
        return [
            {
                "replica": float(replica),
                "generation": float(state.generation),
                "connected": float(state.connected),
                **state.stats,
            }
            for replica, state in sorted(self._engines().items())
        ]

    def prefixes(self) -> list[PrefixRow]:
        """Beginnings that saved most tokens in the caches of all engines."""
        rows = [
            msgspec.structs.replace(row, replica=replica)
            for replica, state in self._engines().items()
            for row in state.shared
        ]
        return sorted(rows, key=lambda row: row.saved, reverse=True)[:_PREFIXES_SHOWN]

    def cache_growth(self) -> dict[str, float]:
        """Growth of the prefix cache's counters in the last minute."""
        names = {
            "hit_tokens": "cache_hit_tokens",
            "query_tokens": "cache_query_tokens",
            "evicted_tokens": "evicted_tokens",
            "preemptions": "retractions",
        }
        return {short: self._engine_delta(name, WINDOW_S)[0] for short, name in names.items()}

    def finished(self) -> dict[str, float]:
        """Sequences that ended in the last minute, by reason."""
        return self._by_last_label("appliance_request_success_total")

    def refused(self) -> dict[str, float]:
        """Requests that got an error in the last minute, by its code."""
        return self._by_last_label("appliance_request_errors_total")

    def cut(self) -> float:
        """Answers of the last minute that ended where the context does."""
        return sum(self._deltas_by_label("appliance_context_cut_total", WINDOW_S).values())

    def _by_last_label(self, name: str) -> dict[str, float]:
        counts: dict[str, float] = {}
        for labels, count in self._deltas_by_label(name, WINDOW_S).items():
            last = labels.rpartition("|")[2]
            counts[last] = counts.get(last, 0.0) + count
        return counts

    def late_frontends(self, now: float) -> list[str]:
        """Frontends that write their snapshot every second, and have not for five."""
        return [f"frontend {f.index}" for f in self.frontends if now - f.at > LATE_S]

    async def _read_gpus(self) -> None:
        if self._sensors is not None:
            self.gpus = await asyncio.to_thread(self._sensors.sample)
            for gpu, number in await asyncio.to_thread(self._sensors.xids):
                self.xids.append((time.time(), gpu, number))

    def throughput(self) -> dict[str, float]:
        """Tokens and requests a second, over RATE_S."""
        return {
            "gen_tok_s": self._rate("appliance_generation_tokens_total"),
            "prompt_tok_s": self._rate("appliance_prompt_tokens_total"),
            "cached_prompt_tok_s": self._rate("appliance_cached_prompt_tokens_total"),
            "req_s": self._rate("appliance_requests_total", 10.0),
        }

    def queue(self) -> dict[str, float]:
        engines = self._engine_sums()
        live = float(sum(f.live for f in self.frontends))
        known = any(e.stats for e in self._engines().values())
        running = engines["running"] if known else 0.0
        # what no engine has taken yet waits in a frontend
        return {"running": running, "waiting": max(engines["waiting"], live - running, 0.0)}

    def kv(self) -> dict[str, float]:
        sums = self._engine_sums()
        total = sums["total_tokens"]
        return {
            "used_tokens": sums["used_tokens"],
            "cached_tokens": sums["cached_tokens"],
            "total_tokens": total,
            "ratio": sums["used_tokens"] / total if total else 0.0,
            "preemptions_total": sum(
                e.stats.get("retractions", 0.0) for e in self._engines().values()
            ),
        }

    def prefix_cache(self) -> dict[str, float | None]:
        now = {r: e.stats for r, e in self._engines().items()}
        hits = sum(s.get("cache_hit_tokens", 0.0) for s in now.values())
        asked = sum(s.get("cache_query_tokens", 0.0) for s in now.values())
        recent_hits = self._engine_delta("cache_hit_tokens", WINDOW_S)[0]
        recent_asked = self._engine_delta("cache_query_tokens", WINDOW_S)[0]
        return {
            "hit_ratio_60s": recent_hits / recent_asked if recent_asked else None,
            "hit_ratio_total": hits / asked if asked else None,
        }

    def outcomes(self) -> dict[str, float]:
        """Requests that ended in the last minute, by the class of their status."""
        found = self._by_last_label("appliance_requests_total")
        return {kind: found.get(kind, 0.0) for kind in ("2xx", "4xx", "5xx", "cancelled")}

    def _engines(self) -> dict[int, EngineState]:
        return self._moments[-1].engines if self._moments else {}

    def _engine_sums(self) -> dict[str, float]:
        states = [e.stats for e in self._engines().values()]
        return {name: sum(s.get(name, 0.0) for s in states) for name in _STATE_OF_ENGINE}

    def _before(self, seconds: float) -> Moment | None:
        """The newest moment that is at least `seconds` before the last, else the oldest."""
        if len(self._moments) < 2:
            return None
        limit = self._moments[-1].at - seconds + 0.5
        older = [m for m in self._moments if m.at <= limit]
        return older[-1] if older else self._moments[0]

    def _engine_delta(self, name: str, seconds: float) -> tuple[float, float]:
        """(growth of an engine's counter, seconds it took); an engine's restart counts all."""
        before = self._before(seconds)
        if before is None:
            return 0.0, 1.0
        growth = 0.0
        for replica, state in self._engines().items():
            old = before.engines.get(replica)
            now = state.stats.get(name, 0.0)
            then = old.stats.get(name, 0.0) if old and old.generation == state.generation else 0.0
            growth += now - then if now >= then else now
        return growth, max(self._moments[-1].at - before.at, 0.001)

    def _rate(self, name: str, seconds: float = RATE_S) -> float:
        before = self._before(seconds)
        if before is None:
            return 0.0
        rate = 0.0
        for key, (at, dump) in self._moments[-1].metrics.items():
            then, old = before.metrics.get(key, (before.at, {}))
            if at > then:
                growth = _total(dump, name) - _total(old, name)
                rate += max(0.0, growth) / max(at - then, 0.5)
        return rate

    def _deltas_by_label(self, name: str, seconds: float) -> dict[str, float]:
        before = self._before(seconds)
        growth: dict[str, float] = {}
        for key, (_, dump) in self._moments[-1].metrics.items() if self._moments else ():
            old = before.metrics.get(key, (0.0, {}))[1] if before else {}
            then = _series(old, name)
            for label, value in _series(dump, name).items():
                growth[label] = growth.get(label, 0.0) + max(0.0, value - then.get(label, 0.0))
        return growth

    def _growth(self, name: str) -> tuple[list[float], list[float]]:
        """A histogram's value of the last minute and its bounds; empty where nothing was seen."""
        before = self._before(WINDOW_S)
        total: list[float] = []
        buckets: list[float] = []
        for key, (_, dump) in self._moments[-1].metrics.items() if self._moments else ():
            old = before.metrics.get(key, (0.0, {}))[1] if before else {}
            then = _series(old, name)
            for label, value in _series(dump, name).items():
                change = subtract(value, then.get(label))
                total = [a + b for a, b in zip(total, change, strict=True)] if total else change
                buckets = dump[name]["buckets"]
        return total, buckets


def read_frontends(run: Path) -> list[FrontendSnapshot]:
    found = []
    for path in sorted(run.glob(paths.frontend_snapshot(run, 0).name.replace("0", "*"))):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=FrontendSnapshot))
        except (OSError, msgspec.DecodeError):
            continue
    return found


def _quantiles(total: list[float], bounds: list[float]) -> dict[str, float | None]:
    wanted = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    return {word: quantile(total, bounds, q) if total else None for word, q in wanted}


def gpu_row(gpu: Gpu) -> dict[str, Any]:
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "util": gpu.utilization,
        "mem_used_bytes": gpu.memory_used,
        "mem_total_bytes": gpu.memory_total,
        "power_w": gpu.power_w,
        "power_limit_w": gpu.power_limit_w,
        "temp_c": gpu.temperature_c,
        "sm_mhz": gpu.sm_clock_mhz,
        "throttle": list(gpu.throttle),
        "ecc_uncorrected": gpu.ecc_uncorrected,
        "processes": [msgspec.to_builtins(process) for process in gpu.processes],
    }


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _moment(now: float, frontends: list[FrontendSnapshot]) -> Moment:
    engines: dict[int, EngineState] = {}
    for frontend in frontends:
        for engine in frontend.engines:
            known = engines.get(engine.replica)
            if known is None or _newer(engine, known):
                engines[engine.replica] = engine
    metrics = {(f.index, f.pid): (f.at, f.metrics) for f in frontends}
    return Moment(now, metrics, engines)


def _newer(a: EngineState, b: EngineState) -> bool:
    return (a.generation, a.stats.get("time", 0.0)) > (b.generation, b.stats.get("time", 0.0))


def _series(dump: Mapping[str, Any], name: str) -> dict[str, Any]:
    return dict(dump[name]["series"]) if name in dump else {}


def _total(dump: Mapping[str, Any], name: str) -> float:
    return float(sum(_series(dump, name).values()))
