"""appliance profile tune: the settings that serve a workload fastest here, found by measuring."""

from __future__ import annotations

import datetime
import glob
import math
import os
import shutil
import threading
import time
from typing import Any

import click
import msgspec

from appliance import paths
from appliance.cli import start
from appliance.cli.amounts import period
from appliance.cli.output import Output, duration, table
from appliance.cli.prepare import Asked, Prepared, machine_text, prepare
from appliance.errors import EngineError, UsageError
from appliance.profiles import search, store
from appliance.profiles.schema import Evidence, Profile
from appliance.profiles.write import match_of, place_for, save

_READY_S = 900.0


@click.command()
@click.argument("model", required=False)
@click.option("--name", default="tuned", help="Name of the profile that is written.")
@click.option("--profile", help="Where to start from; chosen by the machine when left out.")
@click.option("--budget", default="10m", help="Time to search: 90s, 10m, 1h.")
@click.option("--requests", type=click.IntRange(1), default=64, help="Requests of one trial.")
@click.option("--input-len", type=click.IntRange(1), default=256, help="Tokens of a prompt.")
@click.option("--output-len", type=click.IntRange(2), default=64, help="Tokens of an answer.")
@click.option("--load-format", type=click.Choice(["auto", "dummy"]), help="dummy: made-up weights.")
@click.pass_obj
def tune(out: Output, /, model: str | None, name: str, **given: Any) -> None:
    """Serve MODEL again and again with other settings, measure, and write what won as a profile."""
    budget = period(given["budget"])
    place_for(name, out.yes)
    options = {"port": 0, "uds": "", "load_format": given["load_format"]}
    asked = Asked(model, f"tune-{os.getpid()}", given["profile"], options)
    base = prepare(asked)
    candidates = search.axes(base.plan.config, base.hardware.cores)
    count = 1 + sum(len(values) for values in candidates.values())
    out.note(f"At most {count} trials in {duration(budget)}, each a run of its own.")

    def measure(values: dict[str, Any]) -> tuple[float, str]:
        settings = tuple(f"{field}={value}" for field, value in values.items())
        changed = Asked(model, asked.name, given["profile"], options, settings)
        return trial(prepare(changed), out, given)

    def told(done: search.Trial) -> None:
        what = _changed(done.values) or "as it is"
        said = done.problem or f"{done.score:,.0f} output tok/s, {done.detail}"
        out.note(f"  {what}: {said}  ({done.seconds:.0f}s)")

    found = search.search(candidates, measure, budget, time.monotonic, told)
    _tidy(out, asked.name, found)
    _require_comparison(found, budget)
    profile = profile_of(base, name, found, given)
    path = save(profile, replace=out.yes)
    rows = [["", "CHANGED", "OUTPUT TOK/S", "DETAIL"]]
    for done in found.trials:
        mark = "*" if done is found.best else ""
        rows.append(
            [mark, _changed(done.values) or "-", f"{done.score:,.0f}", done.detail or done.problem]
        )
    text = "\n".join(
        [
            table(rows, right=(2,)),
            "",
            *(
                []
                if found.best.values
                else [f"nothing was faster than {base.plan.config.profile} beyond noise"]
            ),
            f"profile {name} written to {path}" + ("" if found.complete else "; the time was up"),
            f"use it: appliance up --profile {name}",
        ]
    )
    data = {
        "schema": "appliance.tune/1",
        "profile": name,
        "path": str(path),
        "complete": found.complete,
        "best": msgspec.to_builtins(found.best),
        "trials": msgspec.to_builtins(found.trials),
    }
    out.result(text, data)


def _tidy(out: Output, run: str, found: search.Found) -> None:
    """What the trials have logged goes, unless one of them failed."""
    if any(done.problem for done in found.trials):
        out.note(f"The log of what failed: {paths.supervisor_log(run)}")
        return
    for file in paths.logs_dir().glob(f"{glob.escape(run)}.*"):
        file.unlink(missing_ok=True)


def trial(prepared: Prepared, out: Output, given: dict[str, Any]) -> tuple[float, str]:
    """Starts a run, measures it, ends it. (output tokens a second, latencies)."""
    from appliance.bench import load, target
    from appliance.bench.measure import figures
    from appliance.bench.workload import Workload

    claim = start.Claim(prepared, out)
    start.spawn(claim)
    start.wait_born(claim)
    quiet = Output(quiet=True, progress=False)
    try:
        status = start.follow_start(claim.client, quiet, threading.Event(), _READY_S)
        if status.state != "ready":
            raise start.failure_of(status)
        url = status.url
        workload = Workload(
            dataset="random",
            requests=given["requests"],
            model=target.served_model(url),
            input_len=given["input_len"],
            output_len=given["output_len"],
            id_range=(16, max(17, min(3000, prepared.spec.vocab - 1))),
        )
        target.warm_up(workload, url, "", 2)
        told = figures(load.run(workload, url))
    finally:
        claim.client.down(0.0)
        start.wait_released(claim.run)
        shutil.rmtree(claim.run, ignore_errors=True)
    if told["failed"]:
        raise EngineError(f"{told['failed']} of {given['requests']} requests failed.")
    ttft, tpot = told["ttft_ms_p50"], told["tpot_ms_p50"]
    return told["out_tok_s"], f"TTFT {ttft:,.1f} ms, TPOT {tpot:,.2f} ms"


def _require_comparison(found: search.Found, budget: float) -> None:
    """A profile says what was measured: without a comparison there is nothing to say."""
    if found.compared():
        return
    problems = [t.problem for t in found.trials if t.problem]
    if problems:
        raise EngineError(f"nothing could be compared: each other setting failed.\n{problems[0]}")
    took = found.trials[0].seconds
    raise UsageError(
        f"within {duration(budget)} nothing could be compared: one trial takes {took:.1f} s, and "
        "what wins is measured twice, as the start is.",
        f"Give it more time, such as --budget {math.ceil(5 * took)}s, or fewer --requests.",
    )


def profile_of(base: Prepared, name: str, found: search.Found, given: dict[str, Any]) -> Profile:
    """The profile it started from with what won, and the trials as its evidence."""
    config = base.plan.config
    stem = store.find(config.profile).profile
    sections: dict[str, dict[str, Any]] = {
        "model": dict(stem.model),
        "serve": dict(stem.serve),
        "schedule": dict(stem.schedule),
        "engine": dict(stem.engine),
    }
    values = {a.field: a.value for a in base.plan.answers} | found.best.values
    for field in found.compared():
        section, _, key = field.partition(".")
        sections[section][key] = values[field]
    first = max(t.score for t in found.trials if not t.values)
    shown = "; ".join(
        f"{_changed(t.values) or 'start'}: {t.score:.0f}" for t in found.trials if not t.problem
    )
    failed = sum(bool(t.problem) for t in found.trials)
    twice = "what won and the start" if found.best.values else "the start and what seemed faster"
    again = any(not t.values for t in found.trials[1:])
    return Profile(
        name=name,
        summary=f"Tuned for {config.model.id} on this machine",
        suggest=stem.suggest,
        match=match_of(base.hardware, config.engine.device, config.engine.tp),
        evidence=Evidence(
            measured=True,
            note=(
                f"measured by `appliance profile tune`: {len(found.trials)} trials of "
                f"{given['requests']} requests at once, {given['input_len']} tokens in, "
                f"{given['output_len']} out"
                + (f", {twice} twice" if again else "")
                + (f"; {failed} of them failed" if failed else "")
                + f"; other values are those of {config.profile}"
            ),
            machine=machine_text(base.hardware),
            date=datetime.date.today().isoformat(),
            result=f"{first:.0f} -> {found.best.score:.0f} output tok/s ({shown})",
            fields=found.compared(),
        ),
        **sections,
    )


def _changed(values: dict[str, Any]) -> str:
    return " ".join(f"{field}={value}" for field, value in values.items())
