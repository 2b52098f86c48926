"""Counters, gauges and histograms; dumps that merge across processes; Prometheus text.

A dump is plain JSON: {name: {"kind", "help", "labels", "series": {"v1|v2": value}}}. A histogram's
value is [count of each bucket (not cumulative), last for +Inf, then the sum].
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

Dump = dict[str, Any]
_M = TypeVar("_M", bound="Metric")


class Metric:
    """One name with its series. labels: closed sets only; an unknown value is the caller's bug."""

    kind = ""

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, help, tuple(labels)
        self.series: dict[str, Any] = {}

    def dump(self) -> dict[str, Any]:
        series = {k: list(v) if isinstance(v, list) else v for k, v in self.series.items()}
        return {"kind": self.kind, "help": self.help, "labels": list(self.labels), "series": series}


class Counter(Metric):
    kind = "counter"

    def add(self, amount: float = 1.0, *labels: str) -> None:
        key = "|".join(labels)
        self.series[key] = self.series.get(key, 0.0) + amount


class Gauge(Metric):
    """Merged by sum: each process reports its own share."""

    kind = "gauge"

    def set(self, value: float, *labels: str) -> None:
        self.series["|".join(labels)] = value


class Histogram(Metric):
    """buckets: upper bounds, ascending, without +Inf."""

    kind = "histogram"

    def __init__(
        self, name: str, help: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> None:
        super().__init__(name, help, labels)
        self.buckets = tuple(buckets)

    def observe(self, value: float, *labels: str, count: int = 1) -> None:
        key = "|".join(labels)
        counts = self.series.get(key)
        if counts is None:
            counts = self.series[key] = [0.0] * (len(self.buckets) + 2)
        counts[bisect_left(self.buckets, value)] += count
        counts[-1] += value * count

    def dump(self) -> dict[str, Any]:
        return {**super().dump(), "buckets": list(self.buckets)}


class Registry:
    """The metrics of one process."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:
        return self._add(Counter(name, help, labels))

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> Gauge:
        return self._add(Gauge(name, help, labels))

    def histogram(
        self, name: str, help: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return self._add(Histogram(name, help, buckets, labels))

    def _add(self, metric: _M) -> _M:
        assert metric.name not in self._metrics, metric.name
        self._metrics[metric.name] = metric
        return metric

    def dump(self) -> Dump:
        return {name: m.dump() for name, m in self._metrics.items()}


def merge(dumps: Iterable[Dump]) -> Dump:
    """Sums the series of several processes."""
    out: Dump = {}
    for dump in dumps:
        for name, metric in dump.items():
            mine = out.setdefault(name, {**metric, "series": {}})["series"]
            for key, value in metric["series"].items():
                if isinstance(value, list):
                    old = mine.get(key, [0.0] * len(value))
                    mine[key] = [a + b for a, b in zip(old, value, strict=True)]
                else:
                    mine[key] = mine.get(key, 0.0) + value
    return out


def subtract(new: Sequence[float], old: Sequence[float] | None) -> list[float]:
    """A histogram's value between two dumps; all of `new` after a restart (a smaller count)."""
    if old is None or sum(new[:-1]) < sum(old[:-1]):
        return list(new)
    return [a - b for a, b in zip(new, old, strict=True)]


def quantile(value: Sequence[float], buckets: Sequence[float], q: float) -> float | None:
    """The q-quantile of a histogram's value, linear within a bucket; None when empty."""
    counts = value[:-1]
    total = sum(counts)
    if total <= 0:
        return None
    rank, seen, lower = q * total, 0.0, 0.0
    for count, upper in zip(counts, buckets, strict=False):
        if seen + count >= rank and count > 0:
            return min(lower + (upper - lower) * (rank - seen) / count, upper)
        seen += count
        lower = upper
    return float(buckets[-1])


def render(dump: Dump, aliases: dict[str, str] | None = None) -> str:
    """Prometheus text format 0.0.4. aliases: further name -> name of a metric shown under both."""
    lines: list[str] = []
    for shown, name in [(n, n) for n in dump] + list((aliases or {}).items()):
        if name in dump:
            lines += _render_one(shown, dump[name])
    return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _render_one(name: str, metric: dict[str, Any]) -> list[str]:
    lines = [f"# HELP {name} {metric['help']}", f"# TYPE {name} {metric['kind']}"]
    for key, value in metric["series"].items():
        values = key.split("|") if metric["labels"] else []
        pairs = [f'{k}="{_escape(v)}"' for k, v in zip(metric["labels"], values, strict=True)]
        if metric["kind"] != "histogram":
            lines.append(f"{name}{_braces(pairs)} {_number(value)}")
            continue
        seen = 0.0
        bounds = [*(_number(b) for b in metric["buckets"]), "+Inf"]
        for bound, count in zip(bounds, value[:-1], strict=True):
            seen += count
            le = f'le="{bound}"'
            lines.append(f"{name}_bucket{_braces([*pairs, le])} {_number(seen)}")
        lines.append(f"{name}_sum{_braces(pairs)} {_number(value[-1])}")
        lines.append(f"{name}_count{_braces(pairs)} {_number(seen)}")
    return lines


def _braces(pairs: list[str]) -> str:
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
