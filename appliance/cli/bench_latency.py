"""appliance bench latency: one static batch at a time."""

from __future__ import annotations

from typing import Any

import click
from msgspec.structs import replace

from appliance.bench import load, report, target
from appliance.bench.load import Run
from appliance.bench.measure import figures
from appliance.bench.workload import Workload
from appliance.cli.bench_options import (
    Ending,
    content_options,
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


@click.command()
@click.argument("where", required=False, metavar="[NAME|URL]")
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
@server_options
@content_options
@record_options
@click.pass_context
def latency(ctx: click.Context, /, **given: Any) -> None:
    """Send one static batch at a time: prefill and decode by themselves."""
    out: Output = ctx.obj
    ending = Ending.of(given)
    url = server(given["where"], given["url"])
    size = given["batch_size"]
    runs = []
    workload = Workload(
        dataset=f"fixed:{given['input_len']},{given['output_len']}",
        requests=size,
        model=given["model"] or target.served_model(url, key()),
        seed=given["seed"],
        id_range=id_range(given["id_range"]),
        extra=extra(given["extra_body"]),
    )
    target.warm_up(workload, url, key(), 1)
    for i in range(given["repeat"] + 1):
        runs.append(
            load.run(
                replace(workload, seed=given["seed"] + i),
                url,
                api_key=key(),
                timeout_s=given["timeout"],
                processes=given["processes"],
            )
        )
    found = latency_figures(runs[1:])
    one = line(
        given["row"],
        found,
        given["labels"],
        kind="latency",
        model=workload.model,
        dataset=workload.dataset,
        batch_size=size,
        seed=workload.seed,
    )
    out.result(_text(found, f"{workload.model}  batch {size}  {workload.dataset}  {url}"), one)
    failed = [tell(out, run, figures(run)) for run in runs]
    ending.finish(ctx, [one], any(failed))


def _text(found: dict[str, Any], title: str) -> str:
    shown = (
        ("first token of all", "prefill_ms", "ms"),
        ("decode step", "itl_ms_p50", "ms"),
        ("whole batch", "batch_ms", "ms"),
        ("output", "out_tok_s", "tok/s"),
    )
    lines = [f"  {name:<22}{report.number(found[k], 2):>11} {unit}" for name, k, unit in shown]
    return "\n".join([title, *lines])


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

    def mean(name: str) -> float | None:
        values = [found[name] for found in each if found[name] is not None]
        return sum(values) / len(values) if values else None

    return together | {"prefill_ms": mean("ttft_ms_max"), "batch_ms": mean("e2e_ms_max")}
