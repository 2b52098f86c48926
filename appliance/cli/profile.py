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
from appliance.profiles import compose, known, match, store
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
    rows = []
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
    # those for this machine first, for on most machines they are a few of many
    order = {"chosen": 0, "would do": 1}
    rows.sort(key=lambda row: order.get(row[4], 2))
    head = ["", "PROFILE", "FOR", "MEASURED", "HERE"]
    out.result(table([head, *rows]), {"schema": "appliance.profiles/1", "profiles": data})


@profile.command()
@click.argument("name")
@click.pass_obj
def show(out: Output, /, name: str) -> None:
    """Every value of profile NAME and what it stands on."""
    stored = store.find(name)
    p, e = stored.profile, stored.profile.evidence
    rows = [["SETTING", "VALUE", "STANDS ON"]]
    for field, value in p.values().items():
        rows.append([field, _value(value), e.of(field)])
    facts = {"file": stored.path, "machine": e.machine, "date": e.date, "result": e.result}
    facts["evidence"] = e.note
    text = "\n".join(
        [
            f"{p.name}: {p.summary}",
            *(f"  {word:<8}  {fact}" for word, fact in facts.items() if fact),
            "",
            table(rows),
        ]
    )
    data = {"schema": "appliance.profile/1", "path": stored.path} | msgspec.to_builtins(p)
    out.result(text, data)


@profile.command()
@click.argument("stem", metavar="[PROFILE]", required=False)
@click.option("--model", help="A pulled model or a folder; the embedded one when left out.")
@click.option("--profile", "name", help="Chosen by the machine when left out.")
@click.option("--context", type=click.IntRange(1), help="Longest prompt and answer, in tokens.")
@click.option("--tp", type=click.IntRange(1), help="GPUs that share one model.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option("--assume-gpus", metavar="GPUS", help="As on such a machine: h100x8 or t4.")
@click.pass_obj
def explain(
    out: Output, /, stem: str | None, model: str | None, name: str | None, **given: Any
) -> None:
    """Every value that MODEL would be served with: from where, and why.

    With a profile for another machine than this one, it is reckoned for such a machine.
    """
    if stem and name and stem != name:
        raise UsageError(f"two profiles are named, {stem} and {name}.", "Name one.")
    name = stem or name
    options = {"context": given["context"], "tp": given["tp"]}
    settings, assume = given["settings"], given["assume_gpus"] or _elsewhere(out, name)
    found = prepare(Asked(model, "default", name, options, settings, assume, False))
    for warning in found.warnings:
        out.warn(warning)
    used = store.find(found.plan.config.profile).profile
    data = plan_data(found)
    data |= {"schema": "appliance.explain/1", "evidence": msgspec.to_builtins(used.evidence)}
    text = [
        f"model    {found.plan.config.model.id}",
        f"profile  {used.name}: {found.why_profile}",
        f"fit      {found.fit.numbers()}; at most {found.fit.longest_context:,} for one request, "
        f"{found.fit.at_once()}",
        *memory_lines(found.fit),
        "",
        answers_text(data["answers"]),
    ]
    out.result("\n".join(text), data)


def _elsewhere(out: Output, name: str | None) -> str | None:
    """The machine of a profile that is named and cannot be run here; None where it can."""
    if name is None:
        return None
    wanted = store.find(name).profile.match
    word = known.word_for(wanted)
    if wanted.device == "cpu" or not word or len(detect().gpus) >= wanted.count:
        return None
    out.note(f"Reckoned for {word}, which is not here.")
    return word


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
