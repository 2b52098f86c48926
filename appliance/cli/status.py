"""appliance status and ps."""

from __future__ import annotations

import json
import time
from typing import Any

import click
import msgspec

from appliance import address, paths
from appliance.cli.output import Output, duration, gigabytes, table
from appliance.cli.prepare import run_folder, runs
from appliance.cli.unit import USER
from appliance.client import Client
from appliance.errors import NotRunningError
from appliance.status import ProcessRow, RunStatus, start_words

_WATCH_S = 0.5
_COLORS = {"ready": "green", "failed": "red", "stopped": "dim"}


@click.command()
@click.argument("name", default="default")
@click.option("--watch", is_flag=True, help="Go on: again whenever the state or a process changes.")
@click.pass_context
def status(ctx: click.Context, name: str, watch: bool) -> None:
    """State, URL and processes of run NAME. Exit code 0 when it is ready, else 3."""
    out = ctx.find_object(Output) or Output()
    found = _look(name)
    if watch:
        _watch(out, name, found)
    elif not out.quiet or out.json:
        out.result(status_text(out, found), msgspec.to_builtins(found))
    if found.state != "ready":
        ctx.exit(3)


def _look(name: str) -> RunStatus:
    try:
        return Client(paths.control_socket(run_folder(name))).status()
    except NotRunningError as e:
        if e.code != NotRunningError.default_code:
            raise
        return RunStatus(run=name, state="stopped", log=str(paths.supervisor_log(name)))


def _watch(out: Output, name: str, found: RunStatus) -> None:
    """Tells the status now and after each change, until Ctrl-C or the reader leaves."""
    told = None
    while True:
        seen = (found.state, found.phase, found.detail, [(p.pid, p.state) for p in found.processes])
        if seen != told:
            out.result(status_text(out, found), msgspec.to_builtins(found))
            told = seen
        time.sleep(_WATCH_S)
        found = _look(name)


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Stopped runs too.")
@click.pass_obj
def ps(out: Output, /, everything: bool) -> None:
    """Every run of this user; with -q, their names alone."""
    found = []
    for run in runs():
        try:
            found.append(Client(paths.control_socket(run), timeout=3.0).status())
        except NotRunningError:
            if everything and paths.config_file(run).exists():  # else it was refused, not started
                found.append(RunStatus(run=run.name))
    gpus = [gpus_of(s) for s in found]
    contexts = [context_of(s) for s in found]
    header = ["NAME", "MODEL", "PROFILE", "STATE", "URL", "GPUS"]
    header += ["MEMORY", "CONTEXT", "UPTIME", "RESTARTS"]
    rows = [header] + [
        [
            s.run,
            s.model or "-",
            s.profile or "-",
            s.state,
            (address.shown(s.url) if s.uds else s.url) or "-",
            ",".join(map(str, used)) or "-",
            gigabytes(memory_of(s)),
            str(context or "-"),
            duration(s.uptime_s),
            str(s.restarts),
        ]
        for s, used, context in zip(found, gpus, contexts, strict=True)
    ]
    text = (
        table(rows, right=(6, 7, 8, 9)) if found else f"No model is being served.{_elsewhere('ps')}"
    )
    if out.quiet:
        text = "\n".join(s.run for s in found)
    runs_data = [
        msgspec.to_builtins(s) | {"gpus": used, "context_tokens": context}
        for s, used, context in zip(found, gpus, contexts, strict=True)
    ]
    out.result(text, {"schema": "appliance.ps/1", "runs": runs_data})


def gpus_of(s: RunStatus) -> list[int]:
    """Numbers of the GPUs that a live run uses, as its plan has them; none on a CPU."""
    return [int(gpu["index"]) for gpu in _planned(s).get("fit", {}).get("gpus", [])]


def context_of(s: RunStatus) -> int | None:
    """Tokens of the longest request that a live run takes, as its plan has it."""
    context = _planned(s).get("config", {}).get("model", {}).get("context")
    return int(context) if context else None


def _planned(s: RunStatus) -> dict[str, Any]:
    if s.state == "stopped":
        return {}
    try:
        plan = json.loads(paths.plan_file(paths.runtime_dir() / s.run).read_bytes())
    except (OSError, ValueError):
        return {}
    return plan if isinstance(plan, dict) else {}


def memory_of(s: RunStatus) -> int:
    return sum(p.memory_bytes or 0 for p in s.processes)


def _elsewhere(command: str) -> str:
    """Where to ask for runs that this user cannot see."""
    if not paths.another_serves_machine():
        return ""
    return f"\nRuns of the machine's service are its own: sudo -u {USER} -H appliance {command}"


def status_text(out: Output, s: RunStatus) -> str:
    """One block for people."""
    if s.state == "stopped":
        others = [name for name in address.listening(paths.control_sockets()) if name != s.run]
        named = f"   Running here: {', '.join(others)}" if others else ""
        return f"{s.run}: not running.  Start it: appliance up{named}{_elsewhere('status')}"
    word = out.paint(s.state.upper(), _COLORS.get(s.state, "yellow"))
    how_far = start_words(s.phase, s.progress, s.remaining_s) if s.phase else ""
    phase = f"  {how_far}  {s.detail}".rstrip() if how_far else ""
    lines = [
        f"{word}  {s.model}  at {address.shown(s.url)}{phase}",
        f"  run {s.run}   profile {s.profile}   up {duration(s.uptime_s)}   "
        f"restarts {s.restarts}   memory {gigabytes(memory_of(s))}",
    ]
    if s.uds:
        lines.append(f"  curl {address.curl(s.url, '/v1/models')}")
    if s.failure:
        lines += [f"  cause {line}" for line in str(s.failure["message"]).split("\n")]
        lines += [f"  fix   {line}" for line in str(s.failure["hint"]).split("\n") if line]
    lines += [f"  {line}" for line in _processes(s.processes).split("\n")]
    if s.phases and s.state == "ready":
        took = "  ".join(f"{p['name']} {p['duration_s']:.1f}s" for p in s.phases)
        lines.append(f"  start  {took}")
    lines.append(f"  log    {s.log}")
    return "\n".join(lines)


def _processes(rows: list[ProcessRow]) -> str:
    cells = [["PROCESS", "PID", "STATE", "MEMORY"]]
    for p in rows:
        name = p.role if p.role == "supervisor" else f"{p.role} {p.index}"
        if p.rank is not None and p.rank > 0:
            name += f" rank {p.rank}"
        memory = gigabytes(p.memory_bytes) if p.memory_bytes else "-"
        cells.append([name, str(p.pid), p.state, memory])
    return table(cells, right=(1, 3))
