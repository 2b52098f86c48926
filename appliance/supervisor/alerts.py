"""What an operator should look at: each alert with since when and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from appliance.hardware import Gpu
from appliance.supervisor.xid import explain

KV_HIGH = 0.9
KV_HIGH_S = 30
QUEUE_WAIT_S = 5.0
LEAST_DISK = 5e9
LOG_STUCK_S = 5.0
RESTART_SHOWN_S = 300.0
XID_SHOWN_S = 3600.0
REFUSED_LEAST = 10.0
REFUSED_SHARE = 0.1
"""So many refused in a minute, and so large a share of all, are worth a look."""
LATE_BEAT = 0.5
"""Share of the silence allowed to an engine after which it is told."""
CODES = tuple(f"APL-ALR-{number:03}" for number in range(1, 17))
"""Of all that is judged here; a run that has failed is told under its failure's own code."""
_HOT = ("heat", "hw-slowdown", "power-brake")
TOO_LONG = "context_length_exceeded"
_NOT_REFUSALS = frozenset(
    {TOO_LONG, "internal_error", "engine_error", "request_quarantined", "tokens_lost", "overloaded"}
)
"""Told by another alert, or no fault of who asked."""
_REFUSAL_FIXES = {
    "invalid_api_key": "appliance key list shows the keys; clients send one as a Bearer token",
    "model_not_found": "appliance up --set model.served_names=NAME adds the name they ask for",
    "no_such_route": "their base URL ends in /v1; appliance connect CLIENT prints it",
    "queue_full": "more GPUs or replicas; fewer clients at once",
    "requests_per_minute": "appliance key list shows each key's limits",
    "tokens_in_flight": "appliance key list shows each key's limits",
    "misdirected_request": "appliance up --set serve.host=ADDRESS with the address they use",
}


class Seen(Struct, frozen=True):
    """What the alerts are judged by. Counts are of the last minute.

    kv_high_s: seconds in a row above KV_HIGH. deaths: of engines, that nobody asked for; died_at:
    Unix time of the last, 0 for never.
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
    deaths: int = 0
    died_at: float = 0.0
    gpus: Sequence[Gpu] = ()
    disk: Mapping[str, int] = {}
    """Bytes free by folder."""
    silent: Mapping[str, float] = {}
    context: int = 0
    longest: bool = False
    """No longer context is to be had of this model on this machine."""
    log_missing: int = 0
    """Lines of the log that its file lacks, and after which none was written yet."""
    log_stuck_s: float = 0.0
    """Seconds for which the log's disk has not answered."""
    frontends: Sequence[str] = ()
    """Those that have published nothing for seconds."""
    slow_links: Sequence[str] = ()
    """Pairs of GPUs and how fast they exchanged at the start, where that is slow."""
    plain: str = ""
    """Why an engine computes by plain torch where its kernels should; empty: none does."""
    xids: Sequence[tuple[float, int, int]] = ()
    """(Unix time, GPU, number) of critical errors, oldest first."""
    refused: Mapping[str, float] = {}
    """Requests that got an error, by its code."""
    requests: float = 0.0
    """All that were answered, refusals among them."""
    cut: float = 0.0
    """Answers that ended where the context does."""


class Finding(Struct, frozen=True):
    """place: tells two alerts of one code apart. since: Unix time, where the cause tells it."""

    code: str
    level: str
    message: str
    fix: str
    place: str = ""
    since: float | None = None


class Alerts:
    """Remembers since when each alert has stood. told: of each that begins (True) and is over."""

    def __init__(self, told: Callable[[bool, Finding], None] = lambda begins, found: None) -> None:
        self._since: dict[tuple[str, str], float] = {}
        self._standing: dict[tuple[str, str], Finding] = {}
        self._told = told

    def standing(self) -> dict[str, int]:
        """How many stand as last judged, of each code."""
        counts = dict.fromkeys(CODES, 0)
        for code, _ in self._standing:
            if code in counts:
                counts[code] += 1
        return counts

    def judge(self, seen: Seen) -> list[tuple[float, Finding]]:
        """(Unix time since when, alert), newest first; errors before warnings of the same time."""
        found = findings(seen)
        keys = {(f.code, f.place): f for f in found}
        for key in keys.keys() - self._standing.keys():
            self._told(True, keys[key])
        for key in self._standing.keys() - keys.keys():
            self._told(False, self._standing[key])
        self._standing = keys
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
    parts = (_of_the_run, _of_the_load, _of_the_answers, _of_the_gpus, _of_the_machine)
    return [finding for part in parts for finding in part(seen)]


def _of_the_run(seen: Seen) -> list[Finding]:
    found = []
    if seen.failure is not None:
        code, message, hint = seen.failure
        found.append(Finding(code, "error", message, hint, since=seen.failed_at))
    if seen.deaths and seen.now - seen.died_at < RESTART_SHOWN_S:
        text = f"an engine was started again ({seen.deaths} since the start)"
        fix = "appliance logs --level error has the cause"
        found.append(Finding("APL-ALR-001", "warn", text, fix, since=seen.died_at))
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
    return found


def _of_the_answers(seen: Seen) -> list[Finding]:
    found = []
    failed, refused = seen.errors.get("5xx", 0.0), seen.errors.get("4xx", 0.0)
    if failed:
        share = f" ({failed / seen.requests:.0%} of all)" if seen.requests else ""
        text = f"{_requests(failed)} got a 5xx in the last minute{share}"
        fix = "appliance logs --level error"
        found.append(Finding("APL-ALR-006", "error", text, fix))
    long = seen.refused.get(TOO_LONG, 0.0)
    if long or seen.cut:
        told = [f"{_requests(long)} refused as too long"] if long else []
        told += [f"{seen.cut:.0f} answers cut off at its end"] if seen.cut else []
        text = f"clients hit the context of {seen.context:,} tokens: {', '.join(told)}"
        text += " in the last minute"
        fix = f"a longer one, where it fits: appliance up --context {2 * seen.context}"
        if seen.longest:
            fix = "it is the longest that this model has here: shorter prompts, or another model"
        found.append(Finding("APL-ALR-013", "warn", text, fix))
    others = {code: n for code, n in seen.refused.items() if code not in _NOT_REFUSALS and n}
    count = refused - long
    if count >= REFUSED_LEAST and count >= REFUSED_SHARE * seen.requests:
        text = f"{_requests(count)} refused in the last minute"
        text += f" ({count / seen.requests:.0%} of all)" if seen.requests else ""
        fix = "appliance logs --level warning"
        if others:
            most = max(others, key=others.__getitem__)
            text += f", most of them: {most}"
            fix = _REFUSAL_FIXES.get(most, f"clients must change what they send: {most}")
        found.append(Finding("APL-ALR-012", "warn", text, fix))
    return found


def _requests(count: float) -> str:
    return f"{count:.0f} request{'' if count == 1 else 's'}"


def _of_the_gpus(seen: Seen) -> list[Finding]:
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
    if seen.slow_links:
        text = f"slow between {', '.join(seen.slow_links)}: all GPUs of a model wait for it"
        fix = "nvidia-smi topo -m and topo -p2p r show the way they take; IOMMU, ACS and PCIe slots"
        found.append(Finding("APL-ALR-015", "warn", text, fix))
    if seen.plain:
        text = f"plain torch computes, many times slower than kernels would: {seen.plain}"
        fix = "appliance doctor names the compilers to install; then appliance restart"
        found.append(Finding("APL-ALR-016", "warn", text, fix))
    return [*found, *_xids(seen)]


def _xids(seen: Seen) -> list[Finding]:
    """One for each GPU and number, with the time of the newest."""
    newest: dict[tuple[int, int], float] = {}
    counts: dict[tuple[int, int], int] = {}
    for at, gpu, number in seen.xids:
        if seen.now - at < XID_SHOWN_S:
            newest[gpu, number] = at
            counts[gpu, number] = counts.get((gpu, number), 0) + 1
    found = []
    for (gpu, number), at in newest.items():
        known = explain(number)
        times = f", {counts[gpu, number]} times" if counts[gpu, number] > 1 else ""
        text = f"GPU {gpu}: Xid {number}{times}: {known.meaning}"
        level = "error" if known.fatal else "warn"
        place = f"GPU {gpu} Xid {number}"
        found.append(Finding("APL-ALR-011", level, text, known.fix, place, since=at))
    return found


def _of_the_machine(seen: Seen) -> list[Finding]:
    found = []
    for folder, free in seen.disk.items():
        if free < LEAST_DISK:
            text = f"{free / 1e9:.1f} GB are free at {folder}"
            fix = "appliance cache df says what takes the room; appliance cache prune frees some"
            found.append(Finding("APL-ALR-007", "warn", text, fix, folder))
    if seen.log_missing or seen.log_stuck_s >= LOG_STUCK_S:
        text = "the log file cannot be written"
        if seen.log_stuck_s >= LOG_STUCK_S:
            text = f"the disk of the log file has not answered for {seen.log_stuck_s:.0f} s"
        if seen.log_missing:
            text += f"; {seen.log_missing:,} lines are not in it"
        fix = "df and dmesg say what is wrong with the disk; appliance logs still has the newest"
        found.append(Finding("APL-ALR-014", "warn", text, fix))
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


def seconds_above(values: Sequence[float], limit: float) -> int:
    """How many of the newest values in a row are above `limit`."""
    count = 0
    for value in reversed(values):
        if value <= limit:
            break
        count += 1
    return count
