"""appliance bench serve: a workload sent to a server, once, several times, or at several rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from msgspec.structs import replace

from appliance.bench import chart, files, load, report, target
from appliance.bench.load import Run
from appliance.bench.measure import Slo, figures
from appliance.bench.presets import PRESETS
from appliance.bench.sweep import Point, Sweep, held, sweep
from appliance.bench.sweep import table as sweep_table
from appliance.bench.workload import Workload, prefix_shape, timed
from appliance.cli.amounts import period
from appliance.cli.bench_options import (
    Bar,
    Ending,
    content_options,
    dataset_options,
    extra,
    id_range,
    key,
    line,
    record_options,
    server,
    server_options,
    tell,
)
from appliance.cli.output import Output
from appliance.errors import UsageError

_PRESETS = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())


@click.command()
@click.argument("where", required=False, metavar="[NAME|URL]")
@click.option("--preset", type=click.Choice(list(PRESETS)), help=_PRESETS)
@dataset_options
@click.option(
    "--api",
    type=click.Choice(["openai", "chat", "native"]),
    default="openai",
    show_default=True,
    help="completions, chat completions, or /generate.",
)
@click.option(
    "--request-rate",
    "--rate",
    default="inf",
    show_default=True,
    metavar="N|inf",
    help="Requests a second, Poisson.",
)
@click.option(
    "--max-concurrency",
    "--concurrency",
    default=0,
    metavar="N",
    help="Under way at most; 0: no limit.",
)
@click.option("--duration", metavar="TIME", help="Begin no request after 60s, 5m, 1h.")
@click.option("--sweep", "plan", metavar="NAME=A,B,…", help="rate=1,2,4 or concurrency=1,16,64.")
@click.option(
    "--repeat",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Runs, each a line of the record: they show how much is noise.",
)
@click.option("--warmup", default=1, show_default=True, metavar="N", help="Requests beforehand.")
@server_options
@content_options
@record_options
@click.pass_context
def serve(ctx: click.Context, /, **given: Any) -> None:
    """Send a workload and tell throughput and latency.

    NAME is that of a run on this machine, URL that of any OpenAI-compatible server.
    """
    out: Output = ctx.obj
    _take_preset(ctx, given)
    ending = Ending.of(given)
    url = server(given["where"], given["url"])
    slo = Slo.parse(given["slo"]) if given["slo"] else None
    plan = _plan(given)
    workload = workload_of(given, url)
    if given["warmup"]:
        out.detail(f"warming up with {given['warmup']} requests")
        target.warm_up(workload, url, key(), given["warmup"])
    title = f"{workload.model}  {workload.dataset}  {url}"
    if plan is None:
        run = _send(out, given, url, workload, given["max_concurrency"])
        found = figures(run, slo)
        one = _line(given, workload, found, workload.rate, given["max_concurrency"])
        text = f"{report.table(found, title)}\n\n{report.verdict(found)}"
        out.result(text, one)
        ending.draw(out, chart.of_run(run, slo), title)
        ending.finish(ctx, [one], tell(out, run, found))
        return
    points = sweep(
        plan,
        workload,
        given["max_concurrency"],
        lambda changed, limit: _send(out, given, url, changed, limit),
        lambda run: figures(run, slo),
    )
    lines = [_of_point(given, workload, plan, point) for point in points]
    out.result("\n".join([sweep_table(plan, points), *held(plan, points, slo)]), lines)
    drawn = chart.of_sweep(plan, points, slo)
    ending.draw(out, drawn, title)
    failed = [tell(out, p.run, p.figures) for p in points]
    ending.finish(ctx, lines, any(failed))


def _take_preset(ctx: click.Context, given: dict[str, Any]) -> None:
    """A preset's values stand where the command line gives none."""
    if given["preset"] is None:
        return
    for name, value in PRESETS[given["preset"]].values.items():
        if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            given[name] = value


def _plan(given: dict[str, Any]) -> Sweep | None:
    if given["plan"] and given["repeat"] > 1:
        raise UsageError("--sweep and --repeat exclude each other.", "Leave one of them out.")
    if given["repeat"] > 1:
        return Sweep("run", tuple(float(i + 1) for i in range(given["repeat"])))
    return Sweep.parse(given["plan"]) if given["plan"] else None


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


def _send(out: Output, given: dict[str, Any], url: str, workload: Workload, limit: int) -> Run:
    length = given["duration"]
    if length:
        workload = timed(workload, period(length), given["num_prompts"] is not None)
    bar = Bar(out, 0 if length and not workload.rate else workload.requests)
    try:
        return load.run(
            workload,
            url,
            api_key=key(),
            concurrency=limit,
            watch=bar,
            processes=given["processes"],
            timeout_s=given["timeout"],
        )
    finally:
        bar.clear()


def _line(
    given: dict[str, Any], workload: Workload, found: dict[str, Any], rate: float, limit: int
) -> dict[str, Any]:
    return line(
        given["row"],
        found,
        given["labels"],
        kind="serve",
        model=workload.model,
        dataset=workload.dataset,
        api=workload.api,
        request_rate=rate or None,
        seed=workload.seed,
        max_concurrency=limit or None,
    )


def _of_point(
    given: dict[str, Any], workload: Workload, plan: Sweep, point: Point
) -> dict[str, Any]:
    """The line of one point; a repeated run is no row of its own."""
    rate = point.value if plan.name == "rate" else workload.rate
    limit = int(point.value) if plan.name == "concurrency" else given["max_concurrency"]
    one = _line(given, replace(workload, seed=point.seed), point.figures, rate, limit)
    return one if plan.name == "run" else one | {"point": f"{plan.name}={point.value:g}"}


def content_of(given: dict[str, Any], model: str, **more: Any) -> Workload:
    """What the dataset's options say; prompts of a file are `more`."""
    dataset, count = given["dataset"], given["num_prompts"]
    if dataset.startswith("prefix:"):
        count = count or 16 * prefix_shape(dataset)[0]
    if dataset.endswith(".jsonl"):
        more["prompts"] = files.read_jsonl(Path(dataset), count or 0, given["output_len"])
    prompts = more.get("prompts", [])
    return Workload(
        dataset=dataset,
        requests=len(prompts) or count or 200,
        model=model,
        seed=given["seed"],
        input_len=given["input_len"],
        output_len=given["output_len"],
        range_ratio=given["range_ratio"],
        id_range=id_range(given["id_range"]),
        form="text" if given["text"] else "ids",
        ignore_eos=not given["stop_at_eos"],
        temperature=given["temperature"],
        extra=extra(given["extra_body"]),
        **more,
    )


def workload_of(given: dict[str, Any], url: str) -> Workload:
    """The workload of a server; ShareGPT's lengths are counted there."""
    model = given["model"] or target.served_model(url, key())
    more: dict[str, Any] = {"api": given["api"], "rate": _rate(given["request_rate"])}
    if given["dataset"].startswith("sharegpt:"):
        form = "chat" if given["api"] == "chat" else "text" if given["text"] else "ids"
        more["prompts"] = files.read_sharegpt(
            Path(given["dataset"].partition(":")[2]),
            given["num_prompts"] or 200,
            given["seed"],
            form,
            url,
            model,
            key(),
        )
    return content_of(given, model, **more)
