"""The supervisor itself: claims the run, then everything else. Runs alone or inside `up`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from appliance import paths
from appliance.errors import ApplianceError
from appliance.metrics import Dump
from appliance.runtime.config import RuntimeConfig, read_config
from appliance.status import EventKind
from appliance.supervisor.child import Commands, RuntimeCommands
from appliance.supervisor.claim import Listening, RunLock, listen
from appliance.supervisor.control import ControlServer, Steps, make_app
from appliance.supervisor.disks import Disks
from appliance.supervisor.events import EventBook
from appliance.supervisor.export import dump, keep_exporting
from appliance.supervisor.health import Limits
from appliance.supervisor.lifecycle import Lifecycle, Watcher
from appliance.supervisor.logs import Line, LogBook, LogHandler
from appliance.supervisor.reload import Reloader, reload_by_signal
from appliance.supervisor.replica import Death
from appliance.supervisor.snapshot import Sampler
from appliance.supervisor.view import View

log = logging.getLogger("appliance.supervisor")


_EVENTS: dict[str, EventKind] = {
    "phase": "phase", "ready": "ready", "death": "death", "restart": "restart",
    "reload": "reload", "step": "drain", "failed": "failed", "stopped": "stopped",
}  # fmt: skip
"""What is told of a lifecycle -> what it is among the run's events."""


async def supervise(
    config: RuntimeConfig,
    listener: socket.socket,
    *,
    commands: Commands | None = None,
    limits: Limits | None = None,
    watcher: Watcher | None = None,
    echo: Callable[[Line], None] | None = None,
    leave_when_failed: bool = False,
) -> Death | None:
    """Runs the run until it is told to stop; returns what made it fail, if anything did.

    The caller holds the run's lock and has bound `listener`. SIGTERM and SIGINT drain; the second
    one kills. watcher is told what people should see, echo each line of the log.
    leave_when_failed: a run that fails ends, instead of answering 503 with the cause.
    """
    run = Path(config.dir)
    book = LogBook(paths.supervisor_log(config.run), echo=echo)
    root = logging.getLogger()
    root.addHandler(LogHandler(book))
    root.setLevel(config.log_level.upper())
    steps = Steps()
    events = EventBook(config.run, time.time())
    sampler = Sampler(run, gpus=config.engine.device == "cuda")
    failed = asyncio.Event()

    def watch(kind: str, text: str) -> None:
        if watcher is not None:
            watcher(kind, text)
        if kind in ("step", "stopped"):
            steps.tell(text)
        if kind in _EVENTS:
            events.tell(_EVENTS[kind], text)
        if kind == "failed":
            failed.set()

    lifecycle = Lifecycle(
        config,
        listener,
        commands or RuntimeCommands(paths.config_file(run)),
        book,
        limits=limits,
        watcher=watch,
        free=sampler.freed,
    )
    disks = Disks(book.path.parent, Path(config.model.path))
    at = Listening(config, listener)
    view = View(at.url, lifecycle, sampler, book, disks, events)
    control = ControlServer(
        run, make_app(run, lifecycle, view, book, steps, Reloader(lifecycle), events)
    )
    _take_signals(lifecycle, watch)
    log.info("run '%s' of %s at %s", config.run, config.model.id, at.url)
    events.tell("started", f"{config.model.id} at {at.url}", profile=config.profile)
    await control.start()
    sampling = asyncio.create_task(sampler.run())
    exporting = asyncio.create_task(
        keep_exporting(
            paths.supervisor_metrics(run), lambda: _seen(lifecycle, sampler, book, disks, view)
        )
    )
    await lifecycle.start()
    try:
        if leave_when_failed:
            await _first(failed, lifecycle.ended)
            if failed.is_set():
                lifecycle.stop_now()
        await lifecycle.ended.wait()
    finally:
        sampling.cancel()
        exporting.cancel()
        book.close()
        events.close()
        await control.close()
        at.close()
    return lifecycle.failure


def _seen(lifecycle: Lifecycle, sampler: Sampler, book: LogBook, disks: Disks, view: View) -> Dump:
    return dump(
        lifecycle.state.state,
        lifecycle.restarts,
        lifecycle.started_at,
        sampler.gpus,
        disks.free().get(str(book.path.parent)),
        book.writer.dropped,
        lifecycle.config.engine.device,
        view.standing_alerts(),
    )


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in waits:
        task.cancel()


def _take_signals(lifecycle: Lifecycle, watch: Watcher) -> None:
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        watch("signal", number.name)
        if lifecycle.state.state == "draining":
            lifecycle.stop_now()
        else:
            lifecycle.stop(lifecycle.config.serve.drain_s)

    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        watch("signal", "SIGHUP")
        task = asyncio.create_task(reload_by_signal(lifecycle.run))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread: no signals
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        if not _of_a_terminal():
            loop.add_signal_handler(signal.SIGHUP, reload)


def _of_a_terminal() -> bool:
    """Whether SIGHUP tells of a terminal that has gone, which is no wish for other settings."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def main() -> int:
    """`python -m appliance.supervisor RUN_DIR`: a run whose config lies in its folder."""
    parser = argparse.ArgumentParser(prog="appliance.supervisor")
    parser.add_argument("run", type=Path)
    parser.add_argument("--lock-fd", type=int, help="the run's lock, held already")
    parser.add_argument("--listen-fd", type=int, help="the socket, bound already")
    parser.add_argument("--detach", action="store_true", help="go on as nobody's child")
    parser.add_argument("--max-deaths", type=int, default=3, help="forgiven within the window")
    parser.add_argument("--death-window", type=float, default=60.0, help="seconds")
    args = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if args.detach and os.fork():
        os._exit(0)
    try:
        lock = RunLock.take(args.run) if args.lock_fd is None else RunLock(args.lock_fd)
        lock.sign()
        config = read_config(paths.config_file(args.run))
        if args.listen_fd is None:
            listener = listen(config)
        else:
            listener = socket.socket(fileno=args.listen_fd)
            listener.setblocking(False)
        limits = Limits(deaths=args.max_deaths, window_s=args.death_window)
        failure = asyncio.run(supervise(config, listener, limits=limits))
    except ApplianceError as e:
        print(f"error[{e.code}]: {e.message}\n  fix   {e.hint}", file=sys.stderr)
        return e.exit_code
    return failure.exit_code if failure else 0
