"""appliance config: every value, who set it, and why."""

from __future__ import annotations

import click

from appliance import paths
from appliance.cli.output import Output
from appliance.cli.prepare import Asked, answers_text, plan_data, prepare, run_folder
from appliance.client import Client
from appliance.errors import NotRunningError
from appliance.profiles.compose import config_files


@click.group()
def config() -> None:
    """Every value, from where and why."""


@config.command()
@click.argument("model", required=False)
@click.option("--name", default="default", help="The run whose values to show.")
@click.option("--profile", help="Values for MODEL with this profile.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.pass_obj
def show(
    out: Output, /, model: str | None, name: str, profile: str | None, settings: tuple[str, ...]
) -> None:
    """Values of the live run; of MODEL, or where nothing runs, those that `up` would take."""
    if model is None and profile is None and not settings:
        try:
            data = Client(paths.control_socket(run_folder(name))).plan()
            out.note(f"Values of the run '{name}':")
            out.result(answers_text(data["answers"]), data)
            return
        except NotRunningError:
            out.note("Nothing runs; these are the values that `appliance up` would take:")
    data = plan_data(prepare(Asked(model, name, profile, {}, settings)))
    out.result(answers_text(data["answers"]), data)


@config.command()
@click.pass_obj
def path(out: Output) -> None:
    """Where settings are read from, the weakest first, and where things lie."""
    files = [{"path": str(p), "exists": p.is_file()} for p in config_files()]
    places = {
        "config": str(paths.config_dir()),
        "profiles": str(paths.user_profiles()),
        "state": str(paths.state_dir()),
        "cache": str(paths.cache_dir()),
        "runs": str(paths.runtime_dir()),
    }
    lines = [f"{f['path']}{'' if f['exists'] else '  (not there)'}" for f in files]
    lines += ["", *(f"{k:<9} {v}" for k, v in places.items())]
    out.result("\n".join(lines), {"schema": "appliance.paths/1", "files": files, **places})
