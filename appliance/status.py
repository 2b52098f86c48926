"""What processes tell each other about their state: plain data, one schema for all who look.

Child -> supervisor: one JSON object a line on the status pipe (Phase, Ready, Beat, Failed).
Supervisor -> frontends: RunState in the file paths.run_state(run), replaced atomically; Cancels.
Frontend -> supervisor: FrontendSnapshot in paths.frontend_snapshot(run, index), up to 4 a second.
Supervisor -> clients: RunStatus (schema appliance.status/1) and TopSnapshot (appliance.top/1).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

PhaseName = Literal["spawn", "import", "connect", "load", "compile", "plan", "capture", "warmup"]
"""In the order of a start. A start may go without connect, compile or capture."""

State = Literal["stopped", "starting", "ready", "degraded", "draining", "failed"]
"""degraded: was ready, an engine is being started again; requests wait and go on."""


# --- child -> supervisor -------------------------------------------------------------------------


class Phase(Struct, frozen=True, tag="phase"):
    """A start-up phase begins or advances. limit_s: silence allowed until the next message."""

    name: PhaseName
    progress: float = 0.0
    limit_s: float = 30.0
    detail: str = ""


class Ready(Struct, frozen=True, tag="ready"):
    """Takes requests from now on. facts: for people and `status` (pages, seconds per phase, …)."""

    facts: dict[str, Any] = {}


class Beat(Struct, frozen=True, tag="beat"):
    """Sent by the engine loop itself at least once a second while it lives.

    limit_s: how long the next silence may be (longer before a long step). facts: of those told by
    Ready, what is no longer as it was.
    """

    steps: int
    limit_s: float = 3.0
    facts: dict[str, Any] = {}


class Failed(Struct, frozen=True, tag="failed"):
    """The first exception of a process, just before it exits. exit_code as in errors.py."""

    message: str
    hint: str = ""
    code: str = ""
    exit_code: int = 10
    traceback: str = ""


ChildMessage = Phase | Ready | Beat | Failed

_child: msgspec.json.Decoder[ChildMessage] = msgspec.json.Decoder(ChildMessage)


def decode_child_message(line: bytes) -> ChildMessage:
    """Raises msgspec.DecodeError for a line that is none."""
    return _child.decode(line)


def start_words(phase: str, progress: float | None, remaining_s: float | None) -> str:
    """``load 41 %, about 2 min left``: how far a start is."""
    words = f"{phase} {progress:.0%}" if progress else phase
    if remaining_s is None:
        return words
    return f"{words}, {about(remaining_s)} left"


def about(seconds: float) -> str:
    """``about 40 s``, ``about 3 min``: no more exactly than it is known."""
    if seconds < 10:
        return f"about {max(1, round(seconds))} s"
    if seconds < 90:
        return f"about {round(seconds / 5) * 5} s"
    return f"about {round(seconds / 60)} min"


class StatusPipe:
    """A child's end of its status pipe. With fd < 0 it says nothing (no supervisor)."""

    def __init__(self, fd: int = -1) -> None:
        self._fd = fd
        self._encoder = msgspec.json.Encoder()

    def send(self, message: ChildMessage) -> None:
        if self._fd < 0:
            return
        try:
            os.write(self._fd, self._encoder.encode(message) + b"\n")
        except OSError:
            self._fd = -1  # the supervisor has gone; the lifeline ends this process


# --- supervisor -> frontends ---------------------------------------------------------------------


class RunState(Struct, frozen=True):
    state: State = "starting"
    phase: str = "spawn"
    progress: float = 0.0
    detail: str = ""
    failure: str = ""
    """One sentence when state is failed."""
    reached_ready: bool = False
    ready_at: float = 0.0
    """Unix time at which a start that is under way is expected to be over; 0: not known."""
    at: float = 0.0
    """Unix time."""


class Cancels(Struct, frozen=True):
    """Requests that an operator has cancelled lately, by id; in paths.cancels(run)."""

    ids: tuple[str, ...] = ()


# --- frontend -> supervisor ----------------------------------------------------------------------


class RequestRow(Struct, frozen=True):
    """A live request, or one that has ended. Never holds text of the prompt or the answer."""

    id: str
    """As the caller gets it in its answer."""
    phase: Literal["queued", "prefill", "decode", "stopping", "done"]
    """stopping: ended here, the engine is still being told."""
    prompt_tokens: int
    """Tokens of the prompt."""
    cached_tokens: int
    """Of them those that the prefix cache had."""
    output_tokens: int
    """Tokens so far."""
    max_tokens: int
    """Most that it may become."""
    age_s: float
    """Seconds since it arrived."""
    queue_s: float | None = None
    """Seconds until it was admitted; None while it waits."""
    ttft_s: float | None = None
    """Seconds until its first token; None before that."""
    tok_s: float | None = None
    """Tokens a second since the first; None before the second."""
    client: str = ""
    """Name of the API key, else the user agent's first word."""
    finish: str = ""
    """Why it ended, when phase is done: stop, length, abort, error, … ; age_s is then its life."""
    prefilled_tokens: int | None = None
    """Of the prompt, while it is computed in parts."""


class PrefixRow(Struct, frozen=True):
    """A beginning of prompts that an engine's cache holds (fields as in wire.SharedPrefix)."""

    number: int
    tokens: int
    own: int
    hits: int
    rows: int
    replica: int = 0

    @property
    def saved(self) -> int:
        """Tokens that were not computed thanks to it, without what is above it."""
        return self.own * self.hits


class ClientRow(Struct, frozen=True):
    """The live requests of one client: of one API key, or of one program."""

    client: str
    live: int
    queued: int
    prompt_tokens: int
    output_tokens: int
    tok_s: float
    oldest_s: float


class EngineState(Struct, frozen=True):
    """The latest StepStats of an engine, as a frontend got it (fields as in wire.StepStats)."""

    replica: int
    connected: bool
    generation: int = 0
    stats: dict[str, float] = {}
    shared: list[PrefixRow] = []


class FrontendSnapshot(Struct, frozen=True):
    index: int
    pid: int
    at: float
    """Unix time."""
    live: int
    requests: list[RequestRow]
    """At most 200, newest first."""
    engines: list[EngineState]
    metrics: dict[str, Any]
    """metrics.Registry.dump() of this frontend."""
    finished: list[RequestRow] = []
    """The last that ended, newest first."""
    clients: list[ClientRow] = []
    """All that have live requests."""
    config_version: int = 0
    """Of the settings that it goes by: when their file was written, in ns; 0: none was read."""


def publish(path: Path, value: Struct) -> None:
    """Writes JSON so that a reader sees the old or the new value, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(value))
    temporary.replace(path)


# --- supervisor -> clients -----------------------------------------------------------------------


class ProcessRow(Struct, frozen=True):
    """One process of a run."""

    role: Literal["supervisor", "frontend", "engine"]
    """What it does."""
    index: int
    """Frontend number, or engine replica."""
    rank: int | None
    """Place among the GPUs of its engine; None for others."""
    pid: int
    """Process id."""
    state: Literal["starting", "ready", "stopped", "failed"]
    """As the supervisor sees it."""
    memory_bytes: int | None = None
    """Memory that it holds; None when it cannot be told."""
    started_at: str = ""
    """ISO time in UTC."""


class RunStatus(Struct, frozen=True):
    """How a run is, for whoever asks; schema appliance.status/1."""

    schema: str = "appliance.status/1"
    """Name and version of this shape."""
    run: str = "default"
    """Name of the run."""
    state: State = "stopped"
    """ready: takes requests now. degraded: an engine is being started again; requests wait and go
    on."""
    phase: str | None = None
    """Of the start that is under way; None when none is."""
    progress: float | None = None
    """Of that phase, 0 to 1; None when it is not known."""
    remaining_s: float | None = None
    """Seconds until the start is over, as expected; None when no start is under way, or when it
    takes longer than was expected."""
    expected_from: Literal["", "earlier", "assumed"] = ""
    """What remaining_s goes by: earlier starts of the same here, or bytes and rates."""
    detail: str = ""
    """A few words on what is being done."""
    failure: dict[str, Any] | None = None
    """message, hint, code, exit_code, log: of what made the run fail."""
    url: str = ""
    """Where it listens; /v1 is appended for an OpenAI client. http+unix://%2FPATH: on a socket."""
    uds: str = ""
    """Path of the Unix socket on which it listens in place of a port; empty: on a port."""
    model: str = ""
    """Name of the model that is served."""
    profile: str = ""
    """Name of the profile of its settings."""
    uptime_s: float = 0.0
    """Seconds since the supervisor started."""
    restarts: int = 0
    """Engines that were started again since then."""
    processes: list[ProcessRow] = []
    """The supervisor first."""
    phases: list[dict[str, Any]] = []
    """[{name, duration_s, detail}] of the engine's start."""
    facts: dict[str, Any] = {}
    """What the engine told: pages, seconds of each phase, passes captured by now, and the like."""
    log: str = ""
    """Path of the log file."""


class TopSnapshot(Struct, frozen=True):
    """Fields as in the dashboard: every value a number or null, never a human string."""

    schema: str = "appliance.top/1"
    """Name and version of this shape."""
    at: str = ""
    """ISO time in UTC."""
    run: str = "default"
    """Name of the run."""
    url: str = ""
    """Where it listens."""
    state: State = "stopped"
    """As in RunStatus."""
    phase: str | None = None
    """Of a start that is under way."""
    progress: float | None = None
    """Of that phase, 0 to 1."""
    remaining_s: float | None = None
    """As in RunStatus."""
    detail: str = ""
    """A few words on what is being done, or why it failed."""
    uptime_s: float = 0.0
    """Seconds since the supervisor started."""
    restarts: int = 0
    """Engines that were started again since then."""
    model: dict[str, Any] = {}
    """id, revision, dtype, max_context"""
    profile: dict[str, Any] = {}
    """name, tp, memory_fraction, chunk, overrides"""
    throughput: dict[str, float] = {}
    """gen_tok_s, prompt_tok_s, cached_prompt_tok_s, req_s"""
    queue: dict[str, float] = {}
    """running, waiting, max_running, oldest_wait_s"""
    kv: dict[str, float] = {}
    """used_tokens, cached_tokens, total_tokens, ratio, preemptions_total"""
    prefix_cache: dict[str, float | None] = {}
    """hit_ratio_60s, hit_ratio_total"""
    latency_60s: dict[str, dict[str, float | None]] = {}
    """ttft_s, itl_s, e2e_s, queue_s: each p50, p90, p99"""
    errors_60s: dict[str, float] = {}
    """4xx, 5xx, cancelled"""
    gpus: list[dict[str, Any]] = []
    """index, uuid, name, util, mem_used_bytes, mem_total_bytes, power_w, power_limit_w, temp_c,
    sm_mhz, throttle, ecc_uncorrected, processes: [{pid, name, memory_bytes}] that hold memory"""
    cpu: dict[str, int | float | None] = {}
    """util, mem_used_bytes, mem_total_bytes, run_bytes (of the run's processes), load1: shown where
    there is no GPU"""
    requests: list[RequestRow] = []
    """Live ones, at most 200."""
    alerts: list[dict[str, Any]] = []
    """code, level, since, message, fix"""
    history: dict[str, list[float]] = {}
    """One value a second, newest last, of 15 minutes or of what was asked for: gen_tok_s,
    prompt_tok_s, running, waiting, kv_ratio, ttft_p50_s, power_w; gpu0_util and gpu0_power_w of
    each GPU"""
    history_seq: int = 0
    """How many seconds the history has had in all: tells a client which of its values are new."""
    log_tail: list[str] = []
    """The last lines of the log, oldest first."""
    finished: list[RequestRow] = []
    """The last that ended, newest first."""
    power: dict[str, float | None] = {}
    """watts now, tokens_per_joule over the last minute, energy_j since the start; empty where no
    sensor tells"""
    distributions_60s: dict[str, dict[str, list[float]]] = {}
    """ttft_s, itl_s, e2e_s, queue_s, prompt_tokens, output_tokens: {bounds, counts} of the last
    minute; counts has one more, for what is above the last bound"""
    engines: list[dict[str, float]] = []
    """replica, generation, connected, and the newest StepStats of each engine"""
    cache_60s: dict[str, float] = {}
    """hit_tokens, query_tokens, evicted_tokens, preemptions: growth in the last minute"""
    finished_60s: dict[str, float] = {}
    """Sequences that ended in the last minute, by reason: stop, length, abort, error"""
    prefixes: list[PrefixRow] = []
    """Beginnings of prompts that saved most tokens, the most first."""
    clients: list[ClientRow] = []
    """Who has live requests, the most first."""


class Change(Struct, frozen=True):
    """A setting that another value was asked for."""

    key: str
    """Dotted, such as serve.max_queue."""
    before: Any
    """What held until now; for a restart, what an engine goes by."""
    value: Any
    """What was asked for."""


class Reloaded(Struct, frozen=True):
    """What became of settings that were read anew; schema appliance.reload/1."""

    schema: str = "appliance.reload/1"
    """Name and version of this shape."""
    run: str = "default"
    """Name of the run."""
    applied: list[Change] = []
    """They hold now."""
    restart: list[Change] = []
    """Each engine goes by them from its next start on."""
    up: list[Change] = []
    """They hold when the whole run is started again; nothing of them was changed."""
    rolling: bool = False
    """Engines can be started again one after the other, while others serve."""
    late: list[str] = []
    """Processes that had not taken over the settings when this was told; they will."""


EventKind = Literal[
    "started", "phase", "ready", "death", "restart", "reload", "alert", "alert_over", "drain",
    "failed", "stopped", "gap",
]  # fmt: skip
"""phase: of a start, also of an engine's. death: of a process; restart: it is started again. drain:
each step of stopping. gap: events before are not known here."""
EventLevel = Literal["info", "warn", "error"]


class Event(Struct, frozen=True):
    """One thing that happened to a run; schema appliance.event/1."""

    schema: str = "appliance.event/1"
    """Name and version of this shape."""
    id: str = ""
    """Names it for whoever comes back for what is behind it; empty for a gap."""
    at: str = ""
    """ISO time in UTC."""
    run: str = "default"
    """Name of the run."""
    kind: EventKind = "started"
    """What it is."""
    level: EventLevel = "info"
    """How bad it is."""
    message: str = ""
    """One line for people."""
    detail: dict[str, Any] = {}
    """why: further lines. Of an alert: code, place and fix."""
