"""appliance config: every value, who set it and why; settings kept in files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from appliance import paths
from appliance.cli.late import LateGroup
from appliance.cli.output import Output, table
from appliance.cli.prepare import (
    Asked,
    Prepared,
    answers_text,
    plan_data,
    prepare,
    run_folder,
    short,
)
from appliance.client import Client
from appliance.errors import ApplianceError, NotRunningError, UsageError
from appliance.profiles.compose import config_files, environment_values, file_values
from appliance.profiles.edit import set_value, unset_value
from appliance.profiles.schema import field_types, nearest_field
from appliance.profiles.store import load


@click.group(cls=LateGroup)
def config() -> None:
    """Every value, from where and why."""


@config.command()
@click.argument("model", required=False)
@click.option("--name", default="default", help="The run whose values to show.")
@click.option("--profile", help="Values for MODEL with this profile.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option("--origin", is_flag=True, help="With what each layer says that was not heard.")
@click.pass_obj
def show(
    out: Output,
    /,
    model: str | None,
    name: str,
    profile: str | None,
    settings: tuple[str, ...],
    origin: bool,
) -> None:
    """Values of the live run; of MODEL, or where nothing runs, those that `up` would take."""
    if model is None and profile is None and not settings and not origin:
        try:
            data = Client(paths.control_socket(run_folder(name))).plan()
            out.note(f"Values of the run '{name}':")
            out.result(answers_text(data["answers"]), data)
            return
        except NotRunningError:
            out.note("Nothing runs; these are the values that `appliance up` would take:")
    found = prepare(Asked(model, name, profile, {}, settings, weights=False))
    data = plan_data(found)
    if not origin:
        out.result(answers_text(data["answers"]), data)
        return
    for answer in data["answers"]:
        lost = found.weaker.get(answer["field"], ())
        answer["weaker"] = [{"source": who, "value": value} for who, value in lost]
    out.result(_origins(found, data["answers"]), data | {"schema": "appliance.origins/1"})


def _origins(found: Prepared, answers: list[dict[str, Any]]) -> str:
    rows = [["SETTING", "VALUE", "FROM", "INSTEAD OF"]]
    for answer in answers:
        lost = found.weaker.get(answer["field"], ())
        said = ", ".join(f"{short(value)} ({who})" for who, value in lost)
        rows.append([answer["field"], short(answer["value"]), answer["source"], said])
    return table(rows)


@config.command()
@click.argument("key")
@click.option("--origin", is_flag=True, help="From where it is, and why, too.")
@click.pass_obj
def get(out: Output, /, key: str, origin: bool) -> None:
    """The value of KEY that the live run has, or that `up` would take."""
    _known(key)
    try:
        answers = Client(paths.control_socket(paths.runtime_dir() / "default")).plan()["answers"]
    except NotRunningError:
        answers = plan_data(prepare(Asked(weights=False)))["answers"]
    answer = next((a for a in answers if a["field"] == key), None)
    if answer is None:
        raise UsageError(f"the run here is of another version and has no {key}.")
    tail = f"  ({': '.join(t for t in (answer['source'], answer['reason']) if t)})"
    text = short(answer["value"]) + (tail if origin else "")
    out.result(text, {"schema": "appliance.setting/1", **answer})


@config.command("set")
@click.argument("key")
@click.argument("value")
@click.option("--here", is_flag=True, help="In ./appliance.toml instead of your own file.")
@click.pass_obj
def set_(out: Output, /, key: str, value: str, here: bool) -> None:
    """Keep VALUE for KEY in your configuration file."""
    _known(key)
    path = _file(here)
    stored = set_value(path, key, value)
    data = {"key": key, "value": stored, "path": str(path)}
    out.note("It holds from the next `appliance up` on; `appliance reload` brings it to a run.")
    out.result(f"{key} = {short(stored)} in {path}", {"schema": "appliance.set/1", **data})


@config.command()
@click.argument("key")
@click.option("--here", is_flag=True, help="In ./appliance.toml instead of your own file.")
@click.pass_obj
def unset(out: Output, /, key: str, here: bool) -> None:
    """Take KEY out of your configuration file."""
    path = _file(here)
    before = unset_value(path, key)
    data = {"key": key, "value": None, "before": before, "path": str(path)}
    out.result(f"{key} is no longer set in {path}", {"schema": "appliance.set/1", **data})


@config.command()
@click.pass_context
def validate(ctx: click.Context) -> None:
    """Check every file, profile and variable that would be read. Exit code 2 when one is wrong."""
    out = ctx.find_object(Output) or Output()
    checks: list[dict[str, Any]] = []

    def check(what: str, attempt: Any) -> None:
        try:
            count = len(attempt())
            checks.append({"what": what, "ok": True, "settings": count, "problem": None})
        except ApplianceError as e:
            problem = f"{e.message} {e.hint}".strip()
            checks.append({"what": what, "ok": False, "settings": 0, "problem": problem})

    for path in config_files():
        if path.is_file():
            check(str(path), lambda path=path: file_values([path]))
    check("environment", lambda: environment_values(os.environ))
    check("profiles", load)
    bad = [c for c in checks if not c["ok"]]
    lines = [
        f"{out.paint('✗' if c in bad else '✓', 'red' if c in bad else 'green')} {c['what']}: "
        + (c["problem"] or f"{c['settings']} {'found' if c['what'] == 'profiles' else 'settings'}")
        for c in checks
    ]
    data = {"schema": "appliance.validation/1", "ok": not bad, "checks": checks}
    out.result("\n".join(lines), data)
    if bad:
        ctx.exit(UsageError.exit_code)


@config.command()
@click.pass_obj
def path(out: Output) -> None:
    """Where settings are read from, the weakest first, and where things lie."""
    files = [{"path": str(p), "exists": p.is_file()} for p in config_files()]
    places = {
        "config": str(paths.config_dir()),
        "profiles": str(paths.user_profiles()),
        "state": str(paths.state_dir()),
        "logs": str(paths.logs_dir()),
        "cache": str(paths.cache_dir()),
        "runs": str(paths.runtime_dir()),
    }
    lines = [f"{f['path']}{'' if f['exists'] else '  (not there)'}" for f in files]
    lines += ["", *(f"{k:<9} {v}" for k, v in places.items())]
    out.result("\n".join(lines), {"schema": "appliance.paths/1", "files": files, **places})


def _known(key: str) -> None:
    names = [*field_types(), "log_level"]
    if key not in names:
        raise UsageError(
            f"there is no setting '{key}'.{nearest_field(key, names)}",
            "`appliance config show` lists every setting.",
            code="APL-USE-014",
        )


def _file(here: bool) -> Path:
    return Path.cwd() / "appliance.toml" if here else paths.config_dir() / "config.toml"
