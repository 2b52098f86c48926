"""From the times of every token to figures, each defined once.

TTFT: from just before the request is sent to the first chunk with text. ITL: the gaps between
chunks with text, one sample a chunk. E2E: to the last chunk. TPOT: (E2E - TTFT) / (output tokens
- 1), of requests with more than one output token. Duration: from the common start to the end of
the last request. Percentiles are linear between samples.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.bench.load import Record, Run
from appliance.errors import UsageError

Floats = npt.NDArray[np.float64]
LATENCIES = ("ttft", "tpot", "itl", "e2e")


@dataclass(frozen=True)
class Slo:
    """Limits in milliseconds that a good request meets, all of them; itl is its mean gap."""

    limits: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Slo:
        """``ttft=500ms,tpot=50`` -> Slo. A bare number is milliseconds. Raises UsageError."""
        limits = []
        for part in text.split(","):
            found = re.fullmatch(r"\s*(\w+)=([\d.]+)(ms|s|)\s*", part)
            if not found or found[1] not in LATENCIES:
                raise UsageError(
                    f"{part!r} is no limit of an SLO.", "Write such as ttft=500ms,tpot=50ms."
                )
            limits.append((found[1], float(found[2]) * (1000 if found[3] == "s" else 1)))
        return cls(tuple(limits))


@dataclass(frozen=True)
class Timeline:
    """One answered request, in seconds. times: of its chunks with text, ascending."""

    start: float
    times: Floats
    last: float
    output_tokens: int

    @property
    def ttft(self) -> float | None:
        return float(self.times[0]) - self.start if len(self.times) else None

    @property
    def itl(self) -> Floats:
        gaps: Floats = np.diff(self.times)
        return gaps

    @property
    def e2e(self) -> float:
        return self.last - self.start

    @property
    def tpot(self) -> float | None:
        if self.ttft is None or self.output_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.output_tokens - 1)

    def meets(self, slo: Slo) -> bool:
        """A latency that the request does not have (one token: no TPOT) breaks no limit."""
        own = {
            "ttft": self.ttft,
            "tpot": self.tpot,
            "itl": float(self.itl.mean()) if len(self.times) > 1 else None,
            "e2e": self.e2e,
        }
        values = ((own[name], limit) for name, limit in slo.limits)
        return all(value is None or value * 1000 <= limit for value, limit in values)


def timeline(record: Record) -> Timeline:
    return Timeline(record.start, np.frombuffer(record.times), record.last, record.output_tokens)


def figures(run: Run, slo: Slo | None = None) -> dict[str, Any]:
    """Every figure of a run by its name; latencies in milliseconds, None where there is none."""
    answered = [r for r in run.records if not r.error]
    lines = [timeline(r) for r in answered]
    duration = max(run.end - run.start, 1e-9)
    tokens_in = sum(r.input_tokens for r in answered)
    tokens_out = sum(r.output_tokens for r in answered)
    found: dict[str, Any] = {
        "completed": len(answered),
        "failed": len(run.records) - len(answered),
        "short": sum(r.output_tokens < r.asked_tokens for r in answered),
        "without_text": sum(line.ttft is None for line in lines),
        "duration_s": duration,
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "req_s": len(answered) / duration,
        "in_tok_s": tokens_in / duration,
        "out_tok_s": tokens_out / duration,
        "total_tok_s": (tokens_in + tokens_out) / duration,
        "concurrency": sum(line.e2e for line in lines) / duration,
        "peak_out_tok_s": _peak_tokens(lines, run.start),
        "peak_concurrency": _peak_requests(lines),
        "sender_cpu_s": run.cpu_s,
    }
    found |= _spread("ttft", [line.ttft for line in lines if line.ttft is not None])
    found |= _spread("tpot", [line.tpot for line in lines if line.tpot is not None])
    found |= _spread("itl", np.concatenate([line.itl for line in lines] or [np.empty(0)]))
    found |= _spread("e2e", [line.e2e for line in lines])
    if slo is not None:
        good = sum(line.meets(slo) for line in lines)
        found["goodput_req_s"] = good / duration
        found["slo_share"] = good / max(1, len(run.records))
        found["slo"] = {name: limit for name, limit in slo.limits}
    return found


def _spread(name: str, seconds: list[float] | Floats) -> dict[str, float | None]:
    ms = np.asarray(seconds, dtype=np.float64) * 1000
    names = ("mean", "std", "p50", "p90", "p95", "p99", "max")
    if not len(ms):
        return {f"{name}_ms_{s}": None for s in names}
    quantiles = np.percentile(ms, [50, 90, 95, 99])
    values = (ms.mean(), ms.std(), *quantiles, ms.max())
    return {f"{name}_ms_{s}": float(value) for s, value in zip(names, values, strict=True)}


def _peak_tokens(lines: list[Timeline], start: float) -> float:
    """Chunks in the busiest whole second after the start."""
    if not any(len(line.times) for line in lines):
        return 0.0
    times = np.concatenate([line.times for line in lines]) - start
    return float(np.bincount(np.maximum(times, 0).astype(np.int64)).max())


def _peak_requests(lines: list[Timeline]) -> int:
    """Requests under way at the same moment, at most."""
    if not lines:
        return 0
    edges = [(line.start, 1) for line in lines] + [(line.last, -1) for line in lines]
    edges.sort()
    return int(np.cumsum([change for _, change in edges]).max())
