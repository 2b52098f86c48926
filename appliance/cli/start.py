"""Claims, starts and watches a run for `up`: here in the foreground, or as a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance import address, paths
from appliance.cli.given import write_given
from appliance.cli.output import Output
from appliance.cli.prepare import Prepared, plan_data
from appliance.client import Client, error_of
from appliance.errors import ApplianceError, BusyError, EngineError, NotRunningError
from appliance.keys import write_digests
from appliance.runtime.config import RuntimeConfig, write_config
from appliance.status import RunStatus, start_words
from appliance.supervisor import devices
from appliance.supervisor.child import child_environment
from appliance.supervisor.claim import RunLock, bind, held, listen

_BIRTH_S = 15.0
_SILENCE_S = 15.0
"""After which a start that no terminal watches says how far it is."""
DONE = {
    "import": "Imported",
    "connect": "Connected",
    "load": "Loaded",
    "compile": "Compiled",
    "plan": "Planned",
    "capture": "Captured",
    "warmup": "Warmed",
}
"""What is said of a phase that is over."""


class Claim:
    """A run's folder with its lock held, its port bound and its files written."""

    def __init__(self, prepared: Prepared, out: Output, keys: Sequence[str] = ()) -> None:
        """BusyError when the name or the port is taken; a run that has failed is replaced.

        keys: API keys of this run alone, whose digests are kept in its folder.
        """
        config = prepared.plan.config
        self.run = paths.run_dir(config.run)
        self.lock = _take(self.run, out)
        try:
            self.listener = _bound(config, out)
        except ApplianceError:
            self.lock.release()
            raise
        serve = config.serve
        if not serve.uds:
            serve = msgspec.structs.replace(serve, port=self.listener.getsockname()[1])
        self.config = msgspec.structs.replace(config, serve=serve, dir=str(self.run))
        if keys:
            write_digests(paths.run_keys(self.run), keys)
        write_config(self.config, paths.config_file(self.run))
        data = plan_data(prepared) | {"config": msgspec.to_builtins(self.config)}
        paths.plan_file(self.run).write_text(json.dumps(data, indent=1))
        write_given(prepared.given, self.run)
        paths.control_socket(self.run).unlink(missing_ok=True)  # left by one that was killed
        self.client = Client(paths.control_socket(self.run))


def _bound(config: RuntimeConfig, out: Output) -> socket.socket:
    """Listens there, or at the next free port where somebody says yes to that."""
    host = config.serve.host
    try:
        return listen(config)
    except BusyError as e:
        free = e.detail.get("free_port")
        if not free or not out.confirm(f"{e.message} Take port {free} instead?"):
            raise
        out.warn(f"{e.message} Port {free} is taken instead.")
        return bind(host, free)


def traces(claim: Claim) -> list[str]:
    """What is said of the traces that the run will write, one line for each engine."""
    engine = claim.config.engine
    if not engine.profile_steps:
        return []
    return [
        f"Tracing   {engine.profile_steps} steps to {paths.trace_file(claim.config.run, replica)}  "
        "(open it in a browser's trace viewer: schedule, inputs, launch, wait, settle)"
        for replica in range(engine.replicas)
    ]


def _take(run: Path, out: Output) -> RunLock:
    end = time.monotonic() + 5.0
    while True:
        try:
            return RunLock.take(run)
        except BusyError:
            client = Client(paths.control_socket(run), timeout=2.0)
            try:
                status = client.status()
            except NotRunningError:
                # it is being born, or just going: one of the two answers soon
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
                continue
            if status.state != "failed":
                raise BusyError(
                    f"the run '{run.name}' is up already: {status.model} at "
                    f"{address.shown(status.url).removesuffix('/v1')} "
                    f"({status.state}).",
                    f"appliance down {run.name}     ends it\n"
                    "appliance up --name OTHER --port 0     starts another beside it",
                    code="APL-BSY-002",
                ) from None
            out.note("The last run has failed; it is replaced.")
            client.down(0.0)
            wait_released(run)


def wait_released(run: Path, limit_s: float = 5.0) -> None:
    end = time.monotonic() + limit_s
    while held(run) and time.monotonic() < end:
        time.sleep(0.02)


def wait_for_the_last(name: str, out: Output) -> None:
    """Until the driver has taken back what the last run of this name held, if that was killed:
    before the memory that is free is looked at."""
    run = paths.runtime_dir() / name
    if not paths.engine_pids(run).exists() or held(run):
        return
    holding = devices.freed(run)
    if holding:
        words = "; ".join(holder.words for holder in holding)
        out.warn(f"of the last run {words}\n{devices.cure(holding)}")


def spawn(claim: Claim) -> None:
    """Starts the supervisor as a process of its own, nobody's child, which takes over lock and
    port."""
    lock_fd, listen_fd = claim.lock.fd, claim.listener.fileno()
    with (claim.run / "supervisor.err").open("wb") as errors:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "appliance.supervisor",
                str(claim.run),
                "--lock-fd",
                str(lock_fd),
                "--listen-fd",
                str(listen_fd),
                "--detach",
            ],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            pass_fds=[lock_fd, listen_fd],
            start_new_session=True,
            env=child_environment() | _notify_socket(),
            cwd="/",
            check=False,  # what went wrong is seen by the lock that nobody holds
        )
    claim.lock.release()
    claim.listener.close()


def _notify_socket() -> dict[str, str]:
    path = os.environ.get("NOTIFY_SOCKET")
    return {"NOTIFY_SOCKET": path} if path else {}


def wait_born(claim: Claim) -> RunStatus:
    """The first answer of the supervisor. EngineError with its own words when it died."""
    end = time.monotonic() + _BIRTH_S
    while time.monotonic() < end:
        try:
            return claim.client.status()
        except NotRunningError:
            if not held(claim.run):
                break
            time.sleep(0.02)
    words = (claim.run / "supervisor.err").read_text(errors="replace").strip().splitlines()
    raise EngineError(
        "the supervisor did not start" + (f"\n{words[-1]}" if words else "."),
        f"Its words are in {claim.run / 'supervisor.err'}.",
    )


def failure_of(status: RunStatus) -> ApplianceError:
    """What made a run fail, with the log's place."""
    fields = dict(status.failure or {"message": "the run failed", "exit_code": 10})
    hints = [str(fields.get("hint") or ""), f"Its log: {fields.get('log') or status.log}"]
    return error_of(fields | {"hint": "\n".join(h for h in hints if h)})


class Display:
    """Prints each start-up phase when it is over, and the state of the one that goes on."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._shown = 0
        self._told_at = time.monotonic()

    def show(self, status: RunStatus) -> None:
        done = status.phases if status.state == "ready" else status.phases[:-1]
        for phase in done[self._shown :]:
            word = DONE.get(phase["name"])
            if word and phase["duration_s"] >= 0.05:
                self._line(f"{word:<10}{phase['detail']:<60}{phase['duration_s']:6.1f}s")
        self._shown = max(self._shown, len(done))
        if not status.phase:
            return
        words = start_words(status.phase, status.progress, status.remaining_s)
        if self._out.interactive():
            basis = " (reckoned: the first start here)" if status.expected_from == "assumed" else ""
            self._out.draw(f"{words}{basis if status.remaining_s else ''}  {status.detail}"[:100])
        elif time.monotonic() - self._told_at >= _SILENCE_S:
            self._line(f"Starting  {words}")

    def finish(self, status: RunStatus) -> None:
        self._out.draw("")
        if status.state == "ready":
            if status.facts.get("plain"):
                self._out.warn(
                    f"plain torch computes, many times slower than kernels would: "
                    f"{status.facts['plain']}  (appliance doctor names what to install)"
                )
            self._out.note(
                f"{self._out.paint('Ready', 'green', sys.stderr)}     in {status.uptime_s:.1f}s"
                "   try: appliance chat    watch: appliance top"
            )

    def _line(self, text: str) -> None:
        self._told_at = time.monotonic()
        self._out.note(text.rstrip())


def follow_start(client: Client, out: Output, stop: threading.Event, limit_s: float) -> RunStatus:
    """Shows the start until the run is ready or has failed, `stop` is set or time is up; the last
    status. NotRunningError when the supervisor goes away."""
    display = Display(out)
    end = time.monotonic() + limit_s
    while True:
        status = client.status()
        display.show(status)
        if status.state not in ("starting", "degraded") or time.monotonic() > end or stop.is_set():
            display.finish(status)
            return status
        stop.wait(0.1)
