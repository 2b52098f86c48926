"""What an operator should look at: each alert with since when and what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from appliance.hardware import Gpu

KV_HIGH = 0.9
KV_HIGH_S = 30
QUEUE_WAIT_S = 5.0
LEAST_DISK = 5e9
RESTART_SHOWN_S = 300.0
LATE_BEAT = 0.5
"""Share of the silence allowed to an engine after which it is told."""
_HOT = ("heat", "hw-slowdown", "power-brake")


class Seen(Struct, frozen=True):
    """What the alerts are judged by. Counts are of the last minute.

    kv_high_s: seconds in a row above KV_HIGH. restarted_at: Unix time, 0 for never.
    silent: engines and for how much of their allowed silence they have said nothing.
    """

    now: float
    failure: tuple[str, str, str] | None = None
    """code, message, hint"""
    failed_at: float = 0.0
    kv_high_s: int = 0
    preemptions: float = 0.0
    queue_wait_p99_s: float | None = None
    max_running: int = 0
    waiting: float = 0.0
    errors: Mapping[str, float] = {}
    restarts: int = 0
    restarted_at: float = 0.0
    gpus: Sequence[Gpu] = ()
    disk: Mapping[str, int] = {}
    """Bytes free by folder."""
    silent: Mapping[str, float] = {}
    context: int = 0
    frontends: Sequence[str] = ()
    """Those that have published nothing for seconds."""


class Finding(Struct, frozen=True):
    """place: tells two alerts of one code apart. since: Unix time, where the cause tells it."""

    code: str
    level: str
    message: str
    fix: str
    place: str = ""
    since: float | None = None


class Alerts:
    """Remembers since when each alert has stood."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}

    def judge(self, seen: Seen) -> list[tuple[float, Finding]]:
        """(Unix time since when, alert), newest first; errors before warnings of the same time."""
        found = findings(seen)
        keys = {(f.code, f.place) for f in found}
        self._since = {k: at for k, at in self._since.items() if k in keys}
        dated = [
            (
                self._since.setdefault((f.code, f.place), seen.now if f.since is None else f.since),
                f,
            )
            for f in found
        ]
        return sorted(dated, key=lambda pair: (-pair[0], pair[1].level))


def findings(seen: Seen) -> list[Finding]:
    return [*_of_the_run(seen), *_of_the_load(seen), *_of_the_machine(seen)]


def _of_the_run(seen: Seen) -> list[Finding]:
    found = []
    if seen.failure is not None:
        code, message, hint = seen.failure
        found.append(Finding(code, "error", message, hint, since=seen.failed_at))
    if seen.restarts and seen.now - seen.restarted_at < RESTART_SHOWN_S:
        text = f"an engine was started again ({seen.restarts} since the start)"
        fix = "appliance logs --level error has the cause"
        found.append(Finding("APL-ALR-001", "warn", text, fix, since=seen.restarted_at))
    for engine, share in seen.silent.items():
        if share >= LATE_BEAT:
            text = f"{engine} has said nothing for {share:.0%} of the time it may be silent"
            fix = "nothing to do: it is started again when that time is over, and streams go on"
            found.append(Finding("APL-ALR-009", "warn", text, fix, engine))
    for name in seen.frontends:
        text = f"{name} has published nothing for seconds: its figures are old"
        fix = "appliance status shows whether it lives; a busy CPU is the usual cause"
        found.append(Finding("APL-ALR-010", "warn", text, fix, name))
    return found


def _of_the_load(seen: Seen) -> list[Finding]:
    found = []
    if seen.kv_high_s >= KV_HIGH_S:
        text = f"the KV cache has been above {KV_HIGH:.0%}: long requests wait"
        fix = "more GPUs, or a smaller context: appliance up --set model.context=" + str(
            max(1024, seen.context // 2)
        )
        since = seen.now - seen.kv_high_s
        found.append(Finding("APL-ALR-002", "warn", text, fix, since=since))
    if seen.preemptions > 0:
        text = f"{seen.preemptions:.0f} running requests were put back in the last minute"
        fix = "fewer at once: appliance up --set schedule.max_running=" + str(
            max(1, seen.max_running * 3 // 4)
        )
        found.append(Finding("APL-ALR-004", "warn", text, fix))
    wait = seen.queue_wait_p99_s
    if wait is not None and wait > QUEUE_WAIT_S:
        text = f"one request in a hundred waits {wait:.1f} s or more before it is computed"
        if seen.waiting:
            text += f"; {seen.waiting:.0f} wait now"
        fix = "more GPUs or replicas; fewer clients at once"
        found.append(Finding("APL-ALR-005", "warn", text, fix))
    failed = seen.errors.get("5xx", 0.0)
    if failed:
        text = f"{failed:.0f} requests got a 5xx in the last minute"
        fix = "appliance logs --level error"
        found.append(Finding("APL-ALR-006", "error", text, fix))
    return found


def _of_the_machine(seen: Seen) -> list[Finding]:
    found = []
    for gpu in seen.gpus:
        place = f"GPU {gpu.index}"
        hot = [word for word in gpu.throttle if word in _HOT]
        if hot:
            text = f"{place} is slowed down: {', '.join(hot)}"
            if gpu.temperature_c is not None:
                text += f", {gpu.temperature_c} °C"
            fix = "look at its cooling and power supply"
            found.append(Finding("APL-ALR-003", "warn", text, fix, place))
        if gpu.ecc_uncorrected:
            text = f"{place} has {gpu.ecc_uncorrected} memory errors that it could not correct"
            fix = f"nvidia-smi -q -d ECC -i {gpu.index}; reset the GPU when it is idle"
            found.append(Finding("APL-ALR-008", "error", text, fix, place))
    for folder, free in seen.disk.items():
        if free < LEAST_DISK:
            text = f"{free / 1e9:.1f} GB are free at {folder}"
            fix = "appliance list shows models by size; appliance rm MODEL removes one"
            found.append(Finding("APL-ALR-007", "warn", text, fix, folder))
    return found


def alert_row(since: str, finding: Finding) -> dict[str, Any]:
    """As it stands in a TopSnapshot. since: ISO 8601."""
    return {
        "code": finding.code,
        "level": finding.level,
        "since": since,
        "message": finding.message,
        "fix": finding.fix,
    }


def disk_free(folder: Path) -> dict[str, int]:
    """Bytes free where `folder` lies; nothing when it cannot be asked."""
    try:
        return {str(folder): shutil.disk_usage(folder).free}
    except OSError:
        return {}


def seconds_above(values: Sequence[float], limit: float) -> int:
    """How many of the newest values in a row are above `limit`."""
    count = 0
    for value in reversed(values):
        if value <= limit:
            break
        count += 1
    return count
