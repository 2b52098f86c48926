"""RunStatus and TopSnapshot of a run, made from its lifecycle, sampler and log when asked."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from appliance import paths
from appliance.runtime.config import RuntimeConfig
from appliance.status import (
    ClientRow,
    EventKind,
    EventLevel,
    FrontendSnapshot,
    ProcessRow,
    RequestRow,
    RunStatus,
    TopSnapshot,
)
from appliance.supervisor.alerts import (
    KV_HIGH,
    Alerts,
    Finding,
    Seen,
    alert_row,
    seconds_above,
)
from appliance.supervisor.child import Child
from appliance.supervisor.disks import Disks
from appliance.supervisor.events import EventBook
from appliance.supervisor.lifecycle import Lifecycle
from appliance.supervisor.logs import LogBook
from appliance.supervisor.replica import Death
from appliance.supervisor.snapshot import HISTORY_S, Sampler, gpu_row, iso

MAX_ROWS = 200
MAX_CLIENTS = 50


class View:
    """What clients see of a run."""

    def __init__(
        self,
        url: str,
        lifecycle: Lifecycle,
        sampler: Sampler,
        book: LogBook,
        disks: Disks,
        events: EventBook,
    ) -> None:
        self._url = url
        self._lifecycle = lifecycle
        self._sampler = sampler
        self._book = book
        self._disks = disks
        self._started = time.time()
        self._planned: tuple[RuntimeConfig, list[dict[str, Any]]] | None = None
        self._events = events
        self._standing = Alerts(self._tell_alert)
        # judged also while nobody looks, or an alert would be as old as the first look at it
        sampler.after_each(self._alerts)
        self._deaths_seen = 0
        self._died_at = 0.0

    @property
    def _config(self) -> RuntimeConfig:
        return self._lifecycle.config

    @property
    def _answers(self) -> list[dict[str, Any]]:
        """The plan's, read anew after a reload."""
        if self._planned is None or self._planned[0] is not self._config:
            self._planned = (self._config, _answers(self._lifecycle.run))
        return self._planned[1]

    def status(self) -> RunStatus:
        life = self._lifecycle
        state = life.state
        engine = life.replicas[0]
        busy = state.state in ("starting", "degraded")
        return RunStatus(
            run=self._config.run,
            state=state.state,
            phase=state.phase if busy else None,
            progress=state.progress if busy else None,
            remaining_s=_rounded(life.remaining_s()),
            expected_from=life.expected_from,
            detail=state.detail,
            failure=failure_fields(life.failure, self._book) if life.failure else None,
            url=self._url,
            uds=self._config.serve.uds,
            model=self._config.model.id,
            profile=self._config.profile,
            uptime_s=round(time.time() - self._started, 3),
            restarts=life.restarts,
            processes=self._processes(),
            phases=[
                {"name": p.name, "duration_s": round(p.seconds, 3), "detail": p.detail}
                for p in engine.phases
            ],
            facts=engine.facts,
            log=str(self._book.path),
        )

    def top(self, history: int = HISTORY_S, log_lines: int = 50) -> TopSnapshot:
        """history: seconds of it that are wanted."""
        life, sampler, config = self._lifecycle, self._sampler, self._config
        state = life.state
        busy = state.state in ("starting", "degraded")
        rows = [row for frontend in sampler.frontends for row in frontend.requests]
        return TopSnapshot(
            at=iso(time.time()),
            run=config.run,
            url=self._url,
            state=state.state,
            phase=state.phase if busy else None,
            progress=state.progress if busy else None,
            remaining_s=_rounded(life.remaining_s()),
            detail=state.failure or state.detail,
            uptime_s=round(time.time() - self._started, 3),
            restarts=life.restarts,
            model={
                "id": config.model.id,
                "revision": config.model.revision,
                "dtype": config.model.dtype,
                "max_context": config.model.context,
            },
            profile={
                "name": config.profile,
                "tp": config.engine.tp,
                "memory_fraction": config.engine.memory_fraction,
                "chunk": config.schedule.chunk,
                "overrides": _overrides(self._answers),
            },
            throughput=sampler.throughput(),
            queue={
                **sampler.queue(),
                "max_running": float(config.schedule.max_running),
                "oldest_wait_s": max((r.age_s for r in rows if r.phase == "queued"), default=0.0),
            },
            kv=self._kv(),
            prefix_cache=sampler.prefix_cache(),
            latency_60s=sampler.latency,
            errors_60s={k: n for k, n in sampler.outcomes().items() if k != "2xx"},
            gpus=self._gpus(),
            cpu={**sampler.cpu, "run_bytes": self._run_bytes()},
            requests=_newest(rows),
            alerts=self._alerts(),
            history=sampler.recent(history),
            history_seq=sampler.history_seq,
            log_tail=[line.text for line in self._book.tail(log_lines)],
            finished=_newest([row for f in sampler.frontends for row in f.finished]),
            power=sampler.power(),
            distributions_60s=sampler.distributions,
            engines=sampler.engines(),
            cache_60s=sampler.cache_growth(),
            finished_60s=sampler.finished(),
            prefixes=sampler.prefixes(),
            clients=_clients(sampler.frontends),
        )

    def _kv(self) -> dict[str, float]:
        """As the engines last said; before they have, what they have room for."""
        kv = self._sampler.kv()
        if not kv["total_tokens"]:
            facts = [r.facts for r in self._lifecycle.replicas if r.ready]
            kv["total_tokens"] = float(
                sum(f.get("pages", 0) * f.get("page_size", 0) for f in facts)
            )
        return kv

    def _run_bytes(self) -> int:
        """Memory that the run's processes hold, this one too."""
        pids = (os.getpid(), *(child.pid for child in self._lifecycle.children() if child.alive))
        return sum(filter(None, map(_memory, pids)))

    def _processes(self) -> list[ProcessRow]:
        rows = [
            ProcessRow(
                "supervisor",
                0,
                None,
                os.getpid(),
                "ready",
                _memory(os.getpid()),
                iso(self._started),
            )
        ]
        for frontend in self._lifecycle.frontends.values():
            rows.append(_row(frontend.child, frontend.ready))
        for replica in self._lifecycle.replicas:
            rows += [_row(child, replica.ready) for child in replica.ranks]
        return rows

    def _alerts(self) -> list[dict[str, Any]]:
        life, sampler, now = self._lifecycle, self._sampler, time.time()
        if life.engine_deaths > self._deaths_seen:
            self._deaths_seen, self._died_at = life.engine_deaths, now
        wait = sampler.latency.get("queue_s", {}).get("p99")
        growth, ended = sampler.cache_growth(), sampler.outcomes()
        seen = Seen(
            now=now,
            failure=_told(life.failure) if life.failure else None,
            failed_at=life.state.at,
            kv_high_s=seconds_above(list(sampler.history["kv_ratio"]), KV_HIGH),
            preemptions=growth["preemptions"],
            queue_wait_p99_s=wait,
            max_running=self._config.schedule.max_running,
            waiting=sampler.queue()["waiting"],
            errors=ended,
            requests=sum(ended.values()),
            refused=sampler.refused(),
            cut=sampler.cut(),
            deaths=life.engine_deaths,
            died_at=self._died_at,
            gpus=sampler.gpus,
            xids=tuple(sampler.xids),
            disk=self._disks.free(),
            log_missing=self._book.writer.missing,
            log_stuck_s=self._book.writer.stuck_s(),
            slow_links=[
                words for r in life.replicas if r.ready for words in r.facts.get("links_slow", ())
            ],
            plain=next((str(r.facts["plain"]) for r in life.replicas if "plain" in r.facts), ""),
            silent={
                f"engine {r.index}": r.silence(time.monotonic())
                for r in life.replicas
                if r.ready and r.alive
            },
            context=self._config.model.context,
            longest=_is_rule(self._answers, "model.context"),
            frontends=sampler.late_frontends(now),
        )
        return [alert_row(iso(since), found) for since, found in self._standing.judge(seen)]

    def standing_alerts(self) -> dict[str, int]:
        """How many alerts stand, of each code."""
        return self._standing.standing()

    def _tell_alert(self, begins: bool, found: Finding) -> None:
        if self._lifecycle.failure is not None:
            return  # told as such; with a run that has failed, what it was warned of is no news
        kind: EventKind = "alert" if begins else "alert_over"
        level: EventLevel = "error" if found.level == "error" else "warn"
        self._events.tell(
            kind,
            found.message,
            level if begins else "info",
            code=found.code,
            place=found.place,
            fix=found.fix,
        )

    def _gpus(self) -> list[dict[str, Any]]:
        """Each process on a GPU says whether it is one of this run's."""
        own = {child.pid for child in self._lifecycle.children()}
        rows = [gpu_row(gpu) for gpu in self._sampler.gpus]
        for row in rows:
            for process in row["processes"]:
                process["ours"] = process["pid"] in own
        return rows


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _told(death: Death) -> tuple[str, str, str]:
    return death.code or "APL-ENG-001", death.message.partition("\n")[0], death.hint


def failure_fields(death: Death, book: LogBook) -> dict[str, Any]:
    return {
        "message": death.message,
        "hint": death.hint,
        "code": death.code or "APL-ENG-001",
        "exit_code": death.exit_code,
        "log": str(book.path),
    }


def _answers(run: Path) -> list[dict[str, Any]]:
    """The plan's: a value each with its source; none where the plan cannot be read."""
    try:
        plan = msgspec.json.decode(paths.plan_file(run).read_bytes(), type=dict[str, Any])
        return [dict(answer) for answer in plan["answers"]]
    except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
        return []


def _overrides(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Values of the plan, beyond where and under which name it is served, that flags, environment
    or files set."""
    return {
        str(a.get("field", "")): a.get("value")
        for a in answers
        if str(a.get("source", "")).startswith(("flag", "environment", "file"))
        and not str(a.get("field", "")).startswith(("serve.", "model.served_names"))
    }


def _is_rule(answers: list[dict[str, Any]], field: str) -> bool:
    """Nobody chose this value: it is what a rule made of the model and the machine."""
    return any(a.get("field") == field and a.get("source") == "rule" for a in answers)


def _row(child: Child, ready: bool) -> ProcessRow:
    state: Literal["starting", "ready", "stopped", "failed"]
    if child.alive:
        state = "ready" if ready else "starting"
    else:
        state = "failed" if child.returncode else "stopped"
    post = child.post
    memory = _memory(child.pid) if child.alive else None
    started = iso(child.started_at)
    return ProcessRow(post.role, post.index, post.rank, child.pid, state, memory, started)


def _memory(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def _clients(frontends: list[FrontendSnapshot]) -> list[ClientRow]:
    """Those of all frontends, joined by name."""
    joined: dict[str, ClientRow] = {}
    for row in (row for frontend in frontends for row in frontend.clients):
        old = joined.get(row.client)
        joined[row.client] = row if old is None else _sum(old, row)
    return sorted(joined.values(), key=lambda row: (-row.live, row.client))[:MAX_CLIENTS]


def _sum(a: ClientRow, b: ClientRow) -> ClientRow:
    return ClientRow(
        client=a.client,
        live=a.live + b.live,
        queued=a.queued + b.queued,
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        output_tokens=a.output_tokens + b.output_tokens,
        tok_s=a.tok_s + b.tok_s,
        oldest_s=max(a.oldest_s, b.oldest_s),
    )


def _newest(rows: list[RequestRow]) -> list[RequestRow]:
    return sorted(rows, key=lambda row: row.age_s)[:MAX_ROWS]
