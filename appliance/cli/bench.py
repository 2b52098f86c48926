"""`appliance bench`: measures any OpenAI-compatible server and compares what was measured."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from appliance import paths
from appliance.bench import files, load, report, target
from appliance.bench.load import Run
from appliance.bench.measure import Slo, figures
from appliance.bench.sweep import Sweep, sweep
from appliance.bench.sweep import table as sweep_table
from appliance.bench.workload import DATASETS, Workload, prefix_shape
from appliance.cli.output import Output
from appliance.client import Client
from appliance.errors import NotRunningError, UsageError

_F = TypeVar("_F", bound=Callable[..., Any])


def _key() -> str:
    return os.environ.get("APPLIANCE_API_KEY") or os.environ.get("OPENAI_API_KEY") or ""


def _url(given: str | None) -> str:
    """The URL that was given, else that of the run on this machine."""
    if given:
        return given
    try:
        status = Client(paths.control_socket(paths.runtime_dir() / "default")).status()
    except NotRunningError as problem:
        raise NotRunningError(
            "Nothing runs on this machine that could be measured.",
            "appliance up -d\nor name a server: --url http://127.0.0.1:8000",
        ) from problem
    return status.url


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--label {text!r} has no value.", "Write such as --label gpu=H100.")
    return name, value


def _extra(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as problem:
        raise UsageError(
            f"--extra-body is no JSON object: {problem}.", """Write such as '{"top_k": 1}'."""
        ) from problem


def _id_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isdigit() and high.isdigit()):
        raise UsageError(f"--id-range {text!r} is no range.", "Write such as 300-3000.")
    return int(low), int(high)


def _rate(text: str) -> float:
    """Requests a second; 0 stands for all at once."""
    if text in ("inf", "0"):
        return 0.0
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 < rate < float("inf"):
        raise UsageError(f"--request-rate {text!r} is no rate.", "Use a number, or inf.")
    return rate


def _line(row: str, found: dict[str, Any], labels: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """The object that --append writes."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    command = "appliance " + shlex.join(sys.argv[1:])
    rest = {"gpu": None, **dict(_pair(label) for label in labels)}
    return {"row": row, "date": now, "command": command, **rest, **more, **found}


class _Bar:
    """Requests done, redrawn on one line of stderr."""

    def __init__(self, out: Output, total: int) -> None:
        self._shown, self._total = out.interactive(), total

    def __call__(self, done: int, failed: int) -> None:
        if self._shown:
            tail = f", {failed} failed" if failed else ""
            sys.stderr.write(f"\r{done}/{self._total} requests{tail}\x1b[K")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _server_options(command: _F) -> _F:
    """Options of every command that sends."""
    for option in (
        click.option("--url", metavar="URL", help="Server; default: the run on this machine."),
        click.option("--model", metavar="NAME", help="Default: the first that it lists."),
        click.option("--row", default="", metavar="ID", help="Name of this run in the record."),
        click.option(
            "--append",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Add the figures to FILE as one JSON line.",
        ),
        click.option(
            "--label",
            "labels",
            multiple=True,
            metavar="KEY=VALUE",
            help="More fields of that line, such as gpu=H100.",
        ),
        click.option("--seed", default=0, show_default=True, help="Of lengths, ids and arrivals."),
        click.option(
            "--id-range",
            default="300-3000",
            show_default=True,
            metavar="LOW-HIGH",
            help="Token ids of random prompts.",
        ),
        click.option("--extra-body", metavar="JSON", help="More fields of each request."),
        click.option(
            "--processes",
            default=0,
            metavar="N",
            help="Sending processes; default: half the cores, at most 4.",
        ),
        click.option(
            "--timeout",
            default=1800.0,
            show_default=True,
            metavar="SECONDS",
            help="For one request.",
        ),
    ):
        command = option(command)
    return command


@click.group()
def bench() -> None:
    """Measure a server, or compare two measurements.

    \b
    appliance bench serve --dataset sharegpt-like --num-prompts 500
    appliance bench latency --batch-size 8
    appliance bench compare old.jsonl new.jsonl --fail-on 'ttft_ms_p99>+10%'

    A key, where the server wants one, is read from APPLIANCE_API_KEY or OPENAI_API_KEY.
    """


@bench.command()
@_server_options
@click.option(
    "--dataset", default="sharegpt-like", show_default=True, metavar="NAME", help=DATASETS
)
@click.option(
    "--num-prompts",
    type=click.IntRange(1),
    metavar="N",
    help="Default 200; prefix: 16 a group; JSON lines: all.",
)
@click.option("--input-len", default=1024, show_default=True, help="For random.")
@click.option("--output-len", default=128, show_default=True, help="For random, JSON lines.")
@click.option(
    "--range-ratio",
    default=0.0,
    show_default=True,
    help="random: lengths from this share of the length up to it.",
)
@click.option(
    "--request-rate",
    default="inf",
    show_default=True,
    metavar="N|inf",
    help="Requests a second, Poisson.",
)
@click.option("--max-concurrency", default=0, metavar="N", help="Under way at most; 0: no limit.")
@click.option("--sweep", "plan", metavar="NAME=A,B,…", help="rate=1,2,4 or concurrency=1,16,64.")
@click.option("--slo", metavar="LIMITS", help="Goodput under ttft=500ms,tpot=50ms,itl=…,e2e=….")
@click.option("--text", "form", flag_value="text", help="Send words, not token ids.")
@click.option("--chat", "form", flag_value="chat", help="Send words to chat completions.")
@click.option("--stop-at-eos", is_flag=True, help="Let answers end by themselves.")
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--warmup", default=1, show_default=True, metavar="N", help="Requests beforehand.")
@click.pass_context
def serve(ctx: click.Context, /, **given: Any) -> None:
    """Send a workload and tell throughput and latency."""
    out: Output = ctx.obj
    url = _url(given["url"])
    slo = Slo.parse(given["slo"]) if given["slo"] else None
    plan = Sweep.parse(given["plan"]) if given["plan"] else None
    workload = _workload(given, url)
    if given["warmup"]:
        out.detail(f"warming up with {given['warmup']} requests")
        target.warm_up(workload, url, _key(), given["warmup"])
    bar = _Bar(out, workload.requests)

    def send(load_now: Workload, concurrency: int) -> Run:
        try:
            return load.run(
                load_now,
                url,
                api_key=_key(),
                concurrency=concurrency,
                watch=bar,
                processes=given["processes"],
                timeout_s=given["timeout"],
            )
        finally:
            bar.clear()

    def record(found: dict[str, Any], rate: float, concurrency: int) -> dict[str, Any]:
        return _line(
            given["row"],
            found,
            given["labels"],
            kind="serve",
            model=workload.model,
            dataset=workload.dataset,
            request_rate=rate or None,
            seed=workload.seed,
            max_concurrency=concurrency or None,
        )

    limit = given["max_concurrency"]
    if plan is not None:
        points = sweep(plan, workload, limit, send, lambda run: figures(run, slo))
        lines = [
            record(
                p.figures,
                p.value if plan.name == "rate" else workload.rate,
                int(p.value) if plan.name == "concurrency" else limit,
            )
            for p in points
        ]
        out.result(sweep_table(plan, points), lines)
        failed = [_tell(out, p.run, p.figures) for p in points]
        _finish(ctx, given["append"], lines, any(failed))
        return
    run = send(workload, limit)
    found = figures(run, slo)
    line = record(found, workload.rate, limit)
    out.result(report.table(found, f"{workload.model}  {workload.dataset}  {url}"), line)
    _finish(ctx, given["append"], [line], _tell(out, run, found))


def _workload(given: dict[str, Any], url: str) -> Workload:
    dataset, count = given["dataset"], given["num_prompts"]
    model = given["model"] or target.served_model(url, _key())
    form = given["form"] or "ids"
    prompts = []
    if dataset.endswith(".jsonl"):
        prompts = files.read_jsonl(Path(dataset), count or 0, given["output_len"])
    elif dataset.startswith("sharegpt:"):
        prompts = files.read_sharegpt(
            Path(dataset.partition(":")[2]), count or 200, given["seed"], form, url, model, _key()
        )
    elif dataset.startswith("prefix:"):
        count = count or 16 * prefix_shape(dataset)[0]
    return Workload(
        dataset=dataset,
        requests=len(prompts) or count or 200,
        model=model,
        seed=given["seed"],
        input_len=given["input_len"],
        output_len=given["output_len"],
        range_ratio=given["range_ratio"],
        id_range=_id_range(given["id_range"]),
        form=form,
        rate=_rate(given["request_rate"]),
        ignore_eos=not given["stop_at_eos"],
        temperature=given["temperature"],
        extra=_extra(given["extra_body"]),
        prompts=prompts,
    )


def _tell(out: Output, run: Run, found: dict[str, Any]) -> bool:
    """Says what went wrong; whether a request failed."""
    for text in report.warnings(found, run.records):
        out.warn(text)
    return bool(found["failed"])


def _finish(
    ctx: click.Context, file: Path | None, lines: list[dict[str, Any]], failed: bool
) -> None:
    if file is not None:
        for line in lines:
            report.append(file, line)
    if failed:
        ctx.exit(1)


@bench.command()
@_server_options
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(1))
@click.option("--input-len", default=128, show_default=True, type=click.IntRange(1))
@click.option("--output-len", default=128, show_default=True, type=click.IntRange(2))
@click.option(
    "--repeat",
    default=3,
    show_default=True,
    type=click.IntRange(1),
    help="Batches measured, after one that is not.",
)
@click.pass_context
def latency(ctx: click.Context, /, **given: Any) -> None:
    """Send one static batch at a time: prefill and decode by themselves."""
    out: Output = ctx.obj
    url = _url(given["url"])
    size = given["batch_size"]
    runs = []
    workload = Workload(
        dataset=f"fixed:{given['input_len']},{given['output_len']}",
        requests=size,
        model=given["model"] or target.served_model(url, _key()),
        seed=given["seed"],
        id_range=_id_range(given["id_range"]),
        extra=_extra(given["extra_body"]),
    )
    target.warm_up(workload, url, _key(), 1)
    for i in range(given["repeat"] + 1):
        changed = msgspec.structs.replace(workload, seed=given["seed"] + i)
        runs.append(
            load.run(
                changed,
                url,
                api_key=_key(),
                timeout_s=given["timeout"],
                processes=given["processes"],
            )
        )
    found = latency_figures(runs[1:])
    line = _line(
        given["row"],
        found,
        given["labels"],
        kind="latency",
        model=workload.model,
        dataset=workload.dataset,
        batch_size=size,
        seed=workload.seed,
    )
    text = "\n".join(
        [f"{workload.model}  batch {size}  {workload.dataset}  {url}"]
        + [
            f"  {name:<22}{report.number(found[key], 2):>11} {unit}"
            for name, key, unit in (
                ("first token of all", "prefill_ms", "ms"),
                ("decode step", "itl_ms_p50", "ms"),
                ("whole batch", "batch_ms", "ms"),
                ("output", "out_tok_s", "tok/s"),
            )
        ]
    )
    out.result(text, line)
    failed = [_tell(out, run, figures(run)) for run in runs]
    _finish(ctx, given["append"], [line], any(failed))


def latency_figures(runs: list[Run]) -> dict[str, Any]:
    """Figures of all batches together; prefill_ms and batch_ms: means of the batches' slowest."""
    each = [figures(run) for run in runs]
    together = figures(
        Run(
            [record for run in runs for record in run.records],
            runs[0].start,
            runs[0].start + sum(run.end - run.start for run in runs),
            sum(run.cpu_s for run in runs),
        )
    )

    def mean(key: str) -> float | None:
        values = [found[key] for found in each if found[key] is not None]
        return sum(values) / len(values) if values else None

    return together | {"prefill_ms": mean("ttft_ms_max"), "batch_ms": mean("e2e_ms_max")}


@bench.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--fail-on",
    "gates",
    multiple=True,
    metavar="GATE",
    help="Such as 'ttft_ms_p99>+10%'; exit code 1 when it holds.",
)
@click.pass_context
def compare(ctx: click.Context, a: str, b: str, gates: tuple[str, ...]) -> None:
    """Compare two results files (FILE or FILE#ROW), the latest line of each row."""
    out: Output = ctx.obj
    parsed = [report.Gate.parse(gate) for gate in gates]
    found = report.compare(report.load_rows(a), report.load_rows(b), parsed)
    out.result(
        found.text,
        {"schema": "appliance.bench-compare/1", "rows": found.data, "failures": found.failures},
    )
    for failure in found.failures:
        out.warn(f"gate not met: {failure}")
    if found.failures:
        ctx.exit(1)
