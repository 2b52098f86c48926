"""appliance up: serve a model, here or detached."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import structs

from appliance import address, paths
from appliance.cli import start
from appliance.cli.given import check_door
from appliance.cli.lines import log_data
from appliance.cli.output import Output
from appliance.cli.preflight import base_model_note, check_gpus, check_start
from appliance.cli.prepare import (
    FLAGS,
    Asked,
    Prepared,
    answers_text,
    machine_text,
    memory_lines,
    plan_data,
    prepare,
    resolved_text,
)
from appliance.client import error_of
from appliance.errors import EngineError, NotFoundError, NotRunningError, UsageError
from appliance.keys import read_plain_keys

_WAIT_S = 1800.0


class _WaitOption(click.Command):
    """Takes `--wait` alone and `--wait=SECONDS`, without eating the word behind it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        split: list[str] = []
        for arg in args:
            if arg.startswith("--wait="):
                split += ["--wait", "--wait-seconds", arg.partition("=")[2]]
            else:
                split.append(arg)
        return super().parse_args(ctx, split)


@click.command(cls=_WaitOption)
@click.argument("model", required=False)
@click.option("-d", "--detach", is_flag=True, help="Return at once; the run goes on.")
@click.option("--wait", is_flag=True, help="With -d: return when ready (--wait=S: at most S s).")
@click.option("--wait-seconds", type=click.FloatRange(0), default=_WAIT_S, hidden=True)
@click.option("--profile", help="Settings to use; chosen by the machine when left out.")
@click.option("--host", help="Address to listen on (127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on (8000); 0: any.")
@click.option(
    "--uds",
    type=click.Path(dir_okay=False),
    metavar="PATH",
    help="Unix socket to listen on, in place of host and port.",
)
@click.option("--served-name", multiple=True, help="A further name the model answers to.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option("--gpus", metavar="LIST", help="GPUs to use: 0,1 or UUIDs.")
@click.option("--tp", type=click.IntRange(1), help="GPUs that share one model.")
@click.option("--context", type=click.IntRange(1), help="Longest prompt and answer, in tokens.")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    metavar="FILE",
    help="Jinja template that makes messages a prompt, in place of the model's own.",
)
@click.option("--load-format", type=click.Choice(["auto", "dummy"]), help="dummy: made-up weights.")
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="APPLIANCE_API_KEY_FILE",
    help="Ask for one of the API keys in this file, one a line.",
)
@click.option("--no-auth", is_flag=True, help="Ask for no API key, whoever can reach it.")
@click.option("--json-logs", is_flag=True, help="The log on stderr as JSON, one object a line.")
@click.option(
    "--request-log",
    type=click.Choice(["off", "on", "content"]),
    help="A line for each request that ends (on); content: with prompt and answer.",
)
@click.option(
    "--profile-steps",
    type=click.IntRange(1),
    metavar="N",
    help="Write a torch trace of N steps, soon after the first requests.",
)
@click.option("--name", default="default", help="Name of the run.")
@click.option(
    "--dry-run", is_flag=True, help="Print every value, from where and why; start nothing."
)
@click.option(
    "--assume-gpus", metavar="GPUS", help="With --dry-run: as on such a machine, h100x8 or t4."
)
@click.pass_obj
def up(out: Output, /, model: str | None, **given: Any) -> None:
    """Serve MODEL: a pulled model's name or a folder; without one, the embedded small model."""
    name = given["name"]
    if not name or "/" in name or name.startswith(".") or len(name) > 40:
        raise UsageError(f"'{name}' cannot be the name of a run.", "Use letters and digits.")
    if given["gpus"] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = given["gpus"]
    options = {k: given[k] for k in FLAGS}
    if given["uds"]:
        if given["host"] or given["port"] is not None:
            raise UsageError("--uds is in place of --host and --port.", "Leave one of them out.")
        options["uds"] = str(Path(given["uds"]).expanduser().absolute())
    keys = read_plain_keys(given["api_key_file"]) if given["api_key_file"] else ()
    if keys:
        options["api_key_file"] = str(paths.run_keys(paths.runtime_dir() / name))
    dry, assume = given["dry_run"], given["assume_gpus"]
    if assume and not dry:
        raise UsageError("--assume-gpus is for a dry run.", "Add --dry-run.")
    settings = given["settings"]
    asked = Asked(model, name, given["profile"], options, settings, assume, not dry)
    if given["gpus"] and not assume:
        check_gpus(given["gpus"])
    if not dry:
        start.wait_for_the_last(name, out)
    try:
        prepared = prepare(asked)
    except NotFoundError as e:
        if dry or not _pulled(out, model, e):
            raise
        prepared = prepare(asked)
    check_door(prepared.plan.config.serve, keys_to_come=bool(keys))
    for warning in prepared.warnings:
        out.warn(warning)
    if dry:
        _tell_plan(out, prepared)
        return
    check_start(prepared)
    given_file = str(given["api_key_file"].absolute()) if keys else None
    noted = structs.replace(prepared.given, api_key_file=given_file, gpus=given["gpus"])
    claim = start.Claim(replace(prepared, given=noted), out, keys)
    serve = claim.config.serve
    shown = "0.0.0.0" if serve.host in ("", "::") else serve.host
    at = f"unix:{serve.uds}" if serve.uds else f"http://{shown}:{serve.port}"
    out.note(f"Checked   {machine_text(prepared.hardware)}")
    out.note(f"Resolved  {claim.config.model.id}, {resolved_text(prepared)}")
    out.note(f"Listening {at}  (answers 503 until ready)")
    if serve.uds:
        out.note(f"Reach it  curl {address.curl(address.unix_url(serve.uds), '/v1/models')}")
    base = base_model_note(prepared)
    if base:
        out.note(base)
    for text in start.traces(claim):
        out.note(text)
    if given["detach"] or given["wait"]:
        _detached(out, claim, given["wait"], given["wait_seconds"])
    else:
        _foreground(out, claim, given["json_logs"])


def _pulled(out: Output, model: str | None, absent: NotFoundError) -> bool:
    """Whether the model has been downloaded now, because somebody said yes to that."""
    if not out.yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    from appliance.cli.pull import offer_pull

    return offer_pull(out, model, absent)


def _tell_plan(out: Output, prepared: Prepared) -> None:
    data = plan_data(prepared)
    fit = prepared.fit
    text = "\n".join(
        [
            f"machine  {machine_text(prepared.hardware)}",
            f"model    {prepared.plan.config.model.id}",
            f"profile  {prepared.plan.config.profile}: {prepared.why_profile}",
            f"fit      {fit.numbers()}; {fit.at_once()}",
            *memory_lines(fit),
            "",
            answers_text(data["answers"]),
        ]
    )
    out.result(text, data)


def _detached(out: Output, claim: start.Claim, wait: bool, limit_s: float) -> None:
    start.spawn(claim)
    status = start.wait_born(claim)
    if wait:
        try:
            status = start.follow_start(claim.client, out, threading.Event(), limit_s)
        except KeyboardInterrupt:
            out.note("stopping")
            claim.client.down(0.0)
            raise
        except NotRunningError as e:
            raise EngineError("the run ended before it was ready.", e.hint) from e
        if status.state == "failed":
            failure = start.failure_of(status)
            claim.client.down(0.0)
            start.wait_released(claim.run)
            raise failure
        if status.state != "ready":
            raise NotRunningError(
                f"the run is not ready after {limit_s:.0f} s; it goes on ({status.phase}).",
                f"appliance status {status.run}",
                code="APL-RUN-004",
            )
    text = f"{status.run}: {status.model} at {address.shown(status.url)} ({status.state})"
    out.result(text, msgspec.to_builtins(status))


def _foreground(out: Output, claim: start.Claim, json_logs: bool) -> None:
    """The supervisor in this process. Its log goes to stderr where no terminal watches."""
    from appliance.supervisor.daemon import supervise
    from appliance.supervisor.logs import Line, journal_text, on_journal

    stop, interrupted = threading.Event(), threading.Event()
    follow = out.interactive() and not out.verbose and not json_logs

    def watch(kind: str, text: str) -> None:
        if (kind, text) == ("signal", "SIGINT"):
            interrupted.set()
        if not follow:
            return  # the log's lines say it
        if kind == "death":
            out.warn(text)
        elif kind in ("step", "stopped"):
            out.note(text)

    journal = on_journal(2)

    def echo(line: Line) -> None:
        text = journal_text(line) if journal else line.text
        sys.stderr.write((json.dumps(log_data(line.text)) if json_logs else text) + "\n")

    def show() -> None:
        try:
            start.follow_start(claim.client, out, stop, float("inf"))
        except NotRunningError:
            pass

    async def run() -> Any:
        display = threading.Thread(target=show, daemon=True)
        task = asyncio.create_task(
            supervise(
                claim.config,
                claim.listener,
                watcher=watch,
                echo=None if follow else echo,
                leave_when_failed=True,
            )
        )
        while not claim.client.socket.exists() and not task.done():
            await asyncio.sleep(0.01)
        if follow:
            display.start()
        try:
            return await task
        finally:
            stop.set()

    death = asyncio.run(run())
    claim.lock.release()
    if death is not None:
        log = paths.supervisor_log(claim.config.run)
        hint = "\n".join(h for h in (death.hint, f"Its log: {log}") if h)
        raise error_of(msgspec.to_builtins(death) | {"hint": hint})
    if interrupted.is_set():
        raise KeyboardInterrupt
