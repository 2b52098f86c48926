"""The composition root: builds one process of a run from the config. It alone sees all rooms.

A process is a frontend (api + text) or a rank of an engine (schedule + engine on rank 0, engine
alone on the others). Imports are made by role, so that a frontend never loads torch.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance import log as logs
from appliance import paths
from appliance.errors import UsageError
from appliance.runtime.config import RuntimeConfig, read_config
from appliance.runtime.model.files import ReadAhead
from appliance.runtime.model.registry import read_spec
from appliance.runtime.schedule.grammar.compile import Words
from appliance.runtime.wire.codec import VERSION
from appliance.runtime.wire.delta import Welcome
from appliance.status import Beat, Phase, PhaseName, Ready, StatusPipe

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_LIMITS = {
    "import": 120.0, "connect": 180.0, "load": 900.0, "compile": 1200.0, "plan": 300.0,
    "capture": 300.0,
}  # fmt: skip
"""Seconds of silence allowed in a phase before the supervisor takes it for hung."""


def hold_lifeline() -> None:
    """Ends this process when its parent does: the end of stdin, and the kernel's signal besides."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)

    def watch() -> None:
        while True:
            try:
                if not os.read(0, 1):
                    break
            except OSError:
                break
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def run_frontend(config: RuntimeConfig, index: int, listen_fd: int, status: StatusPipe) -> None:
    """Serves HTTP until SIGTERM, then until the live requests have ended."""
    logs.setup(f"frontend-{index}", config.log_level)
    status.send(Phase(name="import", limit_s=60.0))
    import uvloop

    from appliance.runtime.api.app import serve
    from appliance.runtime.text.worker import TextWorker

    folder = Path(config.model.path)
    text = TextWorker(
        folder,
        read_spec(folder),
        model=config.model.id,
        tool_parser=config.model.tool_parser,
        reasoning_parser=config.model.reasoning_parser,
        chat_template=config.model.chat_template,
    )
    try:
        uvloop.run(serve(config, text, index, listen_fd, status))
    finally:
        text.close()


def run_engine(
    config: RuntimeConfig, replica: int, rank: int, generation: int, status: StatusPipe
) -> None:
    """One rank of an engine, until SIGTERM."""
    name = f"engine-{replica}" if config.engine.tp == 1 else f"engine-{replica}.{rank}"
    logs.setup(name, config.log_level)
    started = time.monotonic()
    status.send(Phase(name="import", limit_s=_LIMITS["import"]))
    from appliance.hardware import cores, host_memory

    folder, tp = Path(config.model.path), config.engine.tp
    made_up = config.model.load_format == "dummy"
    ahead = None if made_up else ReadAhead(folder, host_memory()[1], cores(), rank, tp)
    from appliance.runtime.engine.profile import TracingExecutor, span
    from appliance.runtime.engine.rank import RankBuilder, RingExecutor, follow
    from appliance.runtime.schedule.grammar.shelf import Shelf
    from appliance.runtime.schedule.loop import Loop
    from appliance.runtime.schedule.scheduler import Scheduler
    from appliance.runtime.wire.channel import EngineDoor
    from appliance.runtime.wire.ring import RingReader, RingWriter
    from appliance.runtime.wire.step import Executor

    imported = time.monotonic()
    run = Path(config.dir)
    ring_path = paths.ring_file(run, replica)
    ring_path = ring_path.with_name(f"{ring_path.name}.{generation}")
    spec = read_spec(folder)
    many = config.engine.tp > 1
    ring = RingWriter(ring_path, config.engine.tp - 1) if many and rank == 0 else None
    meeting = paths.rendezvous_file(run, replica)
    meeting = meeting.with_name(f"{meeting.name}.{generation}")
    built = RankBuilder(
        config,
        spec,
        rank,
        replica * config.engine.tp + rank,
        meeting if many else None,
        _phases(status),
    ).build()
    facts = {**built.facts, "import_s": round(imported - started, 3)}
    if ahead is not None:
        facts["read_ahead_bytes"] = ahead.bytes
    level = LogLevel(paths.config_file(run), config.log_level)
    beat = _beats(status, level)
    if rank > 0:
        status.send(Ready(facts=facts))
        follow(built.executor, RingReader(ring_path, config.engine.tp - 1, rank), beat)
        return
    executor: Executor = built.executor if ring is None else RingExecutor(built.executor, ring)
    if config.engine.profile_steps:
        executor = TracingExecutor(
            executor, config.engine.profile_steps, paths.trace_file(config.run, replica)
        )
    welcome = Welcome(
        version=VERSION,
        generation=generation,
        context=config.model.context,
        total_tokens=built.pages * config.schedule.page_size,
        page_size=config.schedule.page_size,
        max_running=config.schedule.max_running,
        vocab=spec.vocab,
        pid=os.getpid(),
    )
    shelf = Shelf(spec.vocab, lambda: _words(Path(config.model.path)))
    shelf.warm()
    scheduler = Scheduler(
        config.schedule,
        built.pages,
        config.model.context,
        config.schedule.max_running,
        spec.vocab,
        shelf,
    )
    door = EngineDoor(paths.engine_socket(run, replica), welcome)
    loop = Loop(
        scheduler,
        executor,
        door,
        config.schedule.depth,
        generation=generation,
        warmup=built.warmup,
        beat=_beating(status, level, built.facts),
        span=span if config.engine.profile_steps else None,
    )
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    status.send(Ready(facts={**facts, "start_s": round(time.monotonic() - started, 3)}))
    log.info("ready: %s", " ".join(f"{k}={v}" for k, v in facts.items()))
    loop.run()
    door.leave()
    door.close()
    shelf.close()
    if many or config.engine.compile:
        logging.shutdown()
        # the collectives' own end waits for ranks that were asked to go as well, and compilers
        # that stayed loaded fill the log with what they did not free
        os._exit(0)


def _words(folder: Path) -> Words:
    """The model's vocabulary for its grammars."""
    from appliance.runtime.text.vocabulary import Vocabulary

    vocabulary = Vocabulary.load(folder)
    return Words(vocabulary.spelled(), lambda text: vocabulary.encode(text, False))


def _phases(status: StatusPipe) -> Callable[[PhaseName, float, str], None]:
    """Tells the supervisor of each phase, and of progress in it at most 10 times a second."""
    last = ("", 0.0)

    def tell(name: PhaseName, progress: float, detail: str) -> None:
        nonlocal last
        now = time.monotonic()
        if name == last[0] and progress < 1.0 and now - last[1] < 0.1:
            return
        last = (name, now)
        status.send(Phase(name=name, progress=progress, limit_s=_LIMITS[name], detail=detail))

    return tell


class LogLevel:
    """`log_level` as the run's config file has it, which a reload may change: one stat a look."""

    def __init__(self, path: Path, level: str) -> None:
        self._path, self._level = path, level
        self._seen = 0

    def look(self) -> None:
        try:
            seen = self._path.stat().st_mtime_ns
            if seen == self._seen:
                return
            level = read_config(self._path).log_level
        except (OSError, UsageError):
            return
        self._seen = seen
        if level != self._level:
            self._level = level
            logging.getLogger().setLevel(level.upper())
            log.info("the log's level is %s from now on", level)


def _beating(
    status: StatusPipe, level: LogLevel, facts: dict[str, Any]
) -> Callable[[int, float], None]:
    """The loop's beats. facts: as Ready told them; what changes is told by the next beat."""
    told = dict(facts)

    def beat(steps: int, limit_s: float) -> None:
        changed = {name: fact for name, fact in facts.items() if told.get(name) != fact}
        told.update(changed)
        status.send(Beat(steps=steps, limit_s=limit_s, facts=changed))
        level.look()

    return beat


def _beats(status: StatusPipe, level: LogLevel) -> Callable[[int], None]:
    """A Beat at most 4 times a second."""
    last = [0.0]

    def beat(steps: int) -> None:
        now = time.monotonic()
        if now - last[0] >= 0.25:
            last[0] = now
            status.send(Beat(steps=steps))
            level.look()

    return beat
