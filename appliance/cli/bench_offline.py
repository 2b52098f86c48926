"""appliance bench offline: the engine in a process of its own, without HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from appliance import paths
from appliance.bench import chart, offline, report
from appliance.bench.measure import Slo, figures
from appliance.cli.bench_options import (
    Bar,
    Ending,
    content_options,
    dataset_options,
    line,
    record_options,
    tell,
)
from appliance.cli.bench_serve import content_of
from appliance.cli.output import Output
from appliance.cli.prepare import Asked, Prepared, prepare

_GIVEN = ("schedule.", "engine.", "model.")
_NAMES = ("model.path", "model.id", "model.revision", "model.served_names")


@click.command("offline")
@click.argument("model", required=False)
@dataset_options
@click.option("--profile", help="Settings to use; chosen by the machine when left out.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option("--tp", type=click.IntRange(1), help="GPUs that share one model.")
@click.option("--context", type=click.IntRange(1), help="Longest prompt and answer, in tokens.")
@click.option("--load-format", type=click.Choice(["auto", "dummy"]), help="dummy: made-up weights.")
@content_options
@record_options
@click.pass_context
def offline_(ctx: click.Context, /, **given: Any) -> None:
    """Give all prompts to MODEL's engine at once, in one process, and tell throughput.

    MODEL is served with the settings that `appliance up MODEL` would use; without one, the
    embedded model.
    """
    out: Output = ctx.obj
    ending = Ending.of(given)
    slo = Slo.parse(given["slo"]) if given["slo"] else None
    options = {k: given[k] for k in ("tp", "context", "load_format")}
    prepared = prepare(
        Asked(given["model"], "offline", given["profile"], options, given["settings"])
    )
    for warning in prepared.warnings:
        out.warn(warning)
    config = prepared.plan.config
    sharegpt = ""
    if given["dataset"].startswith("sharegpt:"):
        sharegpt = str(Path(given["dataset"].partition(":")[2]).resolve())
    workload = content_of(given, config.model.id)
    bar = Bar(out, workload.requests)
    out.detail(f"loading {config.model.id}")
    try:
        task = offline.Inside(
            workload, config.model.path, settings_of(prepared), paths.kernel_variables(), sharegpt
        )
        run, facts = offline.run(task, bar)
    finally:
        bar.clear()
    found = figures(run, slo) | {"ready_s": facts["ready_s"], "pages": facts["pages"]}
    one = line(
        given["row"],
        found,
        given["labels"],
        kind="offline",
        model=workload.model,
        dataset=workload.dataset,
        profile=config.profile,
        seed=workload.seed,
    )
    title = f"{workload.model}  {workload.dataset}  in one process"
    out.result(f"{report.table(found, title)}\n\n{report.verdict(found)}", one)
    ending.draw(out, chart.of_run(run, slo), title)
    ending.finish(ctx, [one], tell(out, run, found))


def settings_of(prepared: Prepared) -> dict[str, Any]:
    """What was resolved for this machine, as the dotted fields that an Engine takes."""
    return {
        answer.field: answer.value
        for answer in prepared.plan.answers
        if answer.field.startswith(_GIVEN) and answer.field not in _NAMES
    }
