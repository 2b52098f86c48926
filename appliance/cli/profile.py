"""appliance profile list, show, explain, create and tune."""

from __future__ import annotations

import datetime
from typing import Any

import click
import msgspec

from appliance.cli.late import LateGroup
from appliance.cli.output import Output, table
from appliance.cli.prepare import (
    Asked,
    answers_text,
    memory_lines,
    plan_data,
    prepare,
)
from appliance.errors import NotFoundError, UsageError
from appliance.hardware import detect
from appliance.profiles import compose, match, store
from appliance.profiles.schema import Evidence, Profile
from appliance.profiles.write import match_of, save

_TUNE = "Serve MODEL again and again with other settings, measure, and write what won as a profile."


@click.group(cls=LateGroup, late={"tune": ("tune", "tune", _TUNE)})
def profile() -> None:
    """Settings for a kind of machine."""


@profile.command("list")
@click.pass_obj
def list_(out: Output) -> None:
    """Every profile, and which one this machine gets."""
    found = store.load()
    hardware = detect()
    try:
        chosen = match.choose(found.values(), hardware).profile.name
    except NotFoundError:
        chosen = ""
    rows = [["", "PROFILE", "FOR", "MEASURED", "HERE"]]
    data = []
    for name, stored in found.items():
        problem = match.mismatch(stored.profile, hardware)
        here = "chosen" if name == chosen else problem or "would do"
        measured = "yes" if stored.profile.evidence.measured else "no"
        rows.append(["*" if name == chosen else "", name, stored.profile.summary, measured, here])
        data.append(
            {
                "name": name,
                "summary": stored.profile.summary,
                "measured": stored.profile.evidence.measured,
                "chosen": name == chosen,
                "mismatch": problem or None,
                "path": stored.path,
            }
        )
    out.result(table(rows), {"schema": "appliance.profiles/1", "profiles": data})


@profile.command()
@click.argument("name")
@click.pass_obj
def show(out: Output, /, name: str) -> None:
    """Every value of profile NAME and what it stands on."""
    stored = store.find(name)
    p = stored.profile
    rows = [[field, _value(value)] for field, value in p.values().items()]
    measured = "measured" if p.evidence.measured else "not measured"
    text = "\n".join(
        [
            f"{p.name}: {p.summary}",
            f"  file      {stored.path}",
            f"  evidence  {measured}: {p.evidence.note}",
            "",
            table(rows),
        ]
    )
    data = {"schema": "appliance.profile/1", "path": stored.path} | msgspec.to_builtins(p)
    out.result(text, data)


@profile.command()
@click.option("--model", help="A pulled model or a folder; the embedded one when left out.")
@click.option("--profile", "name", help="Chosen by the machine when left out.")
@click.option("--context", type=click.IntRange(1), help="Longest prompt and answer, in tokens.")
@click.option("--tp", type=click.IntRange(1), help="GPUs that share one model.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option("--assume-gpus", metavar="GPUS", help="As on such a machine: h100x8 or t4.")
@click.pass_obj
def explain(out: Output, /, model: str | None, name: str | None, **given: Any) -> None:
    """Every value that MODEL would be served with: from where, and why."""
    options = {"context": given["context"], "tp": given["tp"]}
    settings, assume = given["settings"], given["assume_gpus"]
    found = prepare(Asked(model, "default", name, options, settings, assume, False))
    for warning in found.warnings:
        out.warn(warning)
    used = store.find(found.plan.config.profile).profile
    data = plan_data(found)
    for answer in data["answers"]:
        answer["reason"] = answer["reason"] or "asked for"
    data |= {"schema": "appliance.explain/1", "evidence": msgspec.to_builtins(used.evidence)}
    text = [
        f"model    {found.plan.config.model.id}",
        f"profile  {used.name}: {found.why_profile}",
        f"fit      {found.fit.numbers()}; at most {found.fit.longest_context:,} for one request, "
        f"{found.fit.requests_at_context:.1f} requests of full length",
        *memory_lines(found.fit),
        "",
        answers_text(data["answers"]),
    ]
    out.result("\n".join(text), data)


@profile.command()
@click.argument("name")
@click.option("--from", "stem", help="Profile to start from; this machine's when left out.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.pass_obj
def create(out: Output, /, name: str, stem: str | None, settings: tuple[str, ...]) -> None:
    """Write a profile of your own: another one's values, your configuration's and --set's."""
    hardware = detect()
    if stem:
        source = store.find(stem).profile
    else:
        source = match.choose(store.load().values(), hardware).profile
    layers = {f: v for f, (v, _) in compose.file_values(compose.config_files()).items()}
    changed = compose.set_values(settings)
    values = source.values() | {f: v for f, v in layers.items() if _of_a_machine(f)} | changed
    odd = [f for f in changed if not _of_a_machine(f)]
    if odd:
        raise UsageError(
            f"{', '.join(odd)} belongs to a run and not to a profile.",
            "Give it to `appliance up`, or to `appliance config set`.",
            code="APL-USE-013",
        )
    sections: dict[str, dict[str, Any]] = {"model": {}, "serve": {}, "schedule": {}, "engine": {}}
    for field, value in values.items():
        section, _, key = field.partition(".")
        sections[section][key] = msgspec.to_builtins(value)
    device = "cpu" if source.match.device == "cpu" else "cuda"
    here = device == "cpu" or bool(hardware.gpus)
    made = Profile(
        name=name,
        summary=f"{source.name} with changes of your own",
        suggest=source.suggest,
        match=match_of(hardware, device, source.match.count) if here else source.match,
        evidence=Evidence(
            False,
            f"derived: {source.name} with {', '.join(sorted(changed)) or 'nothing changed'}, "
            f"written {datetime.date.today().isoformat()}",
        ),
        **sections,
    )
    path = save(made, replace=out.yes)
    data = {"schema": "appliance.profile-created/1", "name": name, "path": str(path)}
    out.result(f"profile {name} written to {path}\nuse it: appliance up --profile {name}", data)


def _of_a_machine(field: str) -> bool:
    section, _, key = field.partition(".")
    own = section in ("schedule", "engine") or (section == "model" and key == "dtype")
    return own or field == "serve.frontends"


def _value(value: object) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"{', '.join(map(str, value[:6]))}, … {value[-1]}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
