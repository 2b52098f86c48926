"""`appliance list`, `show` and `rm`: the models on this disk."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from appliance.cli.output import Output, gigabytes, table
from appliance.errors import ApplianceError, NotFoundError, UsageError
from appliance.hub import local, store
from appliance.hub.remove import plan_removal, remove
from appliance.hub.source import parse_name
from appliance.runtime.model.registry import read_spec
from appliance.runtime.spec import ModelSpec


@click.command("list")
@click.option("--source", type=click.Choice(["hf", "modelscope"]), help="Only this hub's.")
@click.option("--sort", type=click.Choice(["name", "size", "date"]), default="name")
@click.pass_obj
def list_(out: Output, source: str | None, sort: str) -> None:
    """Models on this disk, in the caches that other tools use too."""
    models = [m for m in store.installed() if source in (None, m.source)]
    if sort == "size":
        models.sort(key=lambda m: -m.size_bytes)
    elif sort == "date":
        models.sort(key=lambda m: -m.modified)
    data = {"schema": "appliance.list/1", "models": [_row_data(m) for m in models]}
    if not models:
        out.result("No models on this disk.   appliance pull Qwen/Qwen3-8B", data)
        return
    rows = [["NAME", "SOURCE", "REV", "SIZE", "FILES", "COMPLETE"]]
    rows += [
        [
            m.name,
            m.source,
            _revision(m),
            gigabytes(m.size_bytes + m.partial_bytes),
            str(m.files),
            "yes" if m.complete else f"no, lacks {_few(m.missing)}",
        ]
        for m in models
    ]
    out.result(table(rows, right=(3, 4)), data)


@click.command("show")
@click.argument("model")
@click.pass_obj
def show(out: Output, model: str) -> None:
    """What MODEL is, as far as its own files tell."""
    name, folder, data = _identity(model)
    card = local.card(folder)
    spec, why = _spec(folder)
    data |= {
        "path": str(folder),
        "architecture": spec.architecture if spec else None,
        "supported": spec is not None,
        "why_not": why or None,
        "dtype": spec.dtype if spec else None,
        "tensor_dtypes": list(card.dtypes),
        "context_tokens": spec.max_context if spec else None,
        "layers": spec.layers if spec else None,
        "weight_bytes": card.weight_bytes,
        "parameters": card.parameters,
        "license": card.license,
        "chat_template": card.chat_template,
    }
    rows = [["model", name]]
    if "revision" in data:
        rows.append(["revision", f"{data['revision']} from {data['source']}"])
    rows += [
        ["architecture", spec.architecture if spec else why],
        ["parameters", _count(card.parameters)],
        ["dtype", ", ".join(card.dtypes) or "–"],
        ["context", f"{spec.max_context} tokens" if spec else "–"],
        ["size", gigabytes(card.weight_bytes)],
        ["licence", card.license or "–"],
        ["chat template", "yes" if card.chat_template else "no: a base model, completions only"],
        ["path", str(folder)],
    ]
    out.result(table(rows), data)


@click.command("rm")
@click.argument("models", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Say what would be freed, and leave.")
@click.pass_obj
def rm(out: Output, models: tuple[str, ...], dry_run: bool) -> None:
    """Remove MODELS from this disk; MODEL@REV removes one revision."""
    removals = [plan_removal(group) for text in models for group in _groups(text)]
    total = sum(r.freed_bytes for r in removals)
    names = ", ".join(dict.fromkeys(r.models[0].name for r in removals))
    data: dict[str, Any] = {
        "schema": "appliance.rm/1",
        "dry_run": dry_run,
        "freed_bytes": total,
        "models": [
            {
                "name": r.models[0].name,
                "source": r.models[0].source,
                "revisions": [m.commit for m in r.models],
                "freed_bytes": r.freed_bytes,
            }
            for r in removals
        ],
    }
    if dry_run:
        out.result(f"Would remove {names}: {gigabytes(total)}", data)
        return
    if not out.confirm(f"Remove {names} ({gigabytes(total)})?"):
        raise UsageError(f"{names} was not removed: nobody said yes.", "Add -y.")
    for removal in removals:
        remove(removal)
    out.result(f"Removed {names}: {gigabytes(total)} freed", data)


def _groups(text: str) -> list[list[store.Model]]:
    """The revisions a name means, one list for each hub."""
    name, revision = parse_name(text)
    same = [m for m in store.installed() if m.name == name]
    if revision is not None and same:
        same = [store.find_model(name, revision)]
    if not same:
        known = ", ".join(dict.fromkeys(m.name for m in store.installed())) or "none"
        raise NotFoundError(f"{name} is not on this disk.", f"Models here: {known}.")
    repos = dict.fromkeys(m.repo for m in same)
    return [[m for m in same if m.repo == repo] for repo in repos]


def _identity(text: str) -> tuple[str, Path, dict[str, Any]]:
    data: dict[str, Any] = {"schema": "appliance.show/1"}
    if local.is_folder_name(text):
        folder = local.folder_of(text)
        return folder.name, folder, data | {"name": folder.name}
    model = store.find_model(text)
    known = {"name": model.name, "source": model.source, "revision": _revision(model)}
    return model.name, model.folder, data | known | {"commit": model.commit}


def _spec(folder: Path) -> tuple[ModelSpec | None, str]:
    try:
        return read_spec(folder), ""
    except ApplianceError as e:
        return None, e.message


def _row_data(m: store.Model) -> dict[str, Any]:
    when = datetime.datetime.fromtimestamp(m.modified, datetime.UTC)
    return {
        "name": m.name,
        "source": m.source,
        "commit": m.commit or None,
        "revisions": list(m.revisions),
        "size_bytes": m.size_bytes,
        "partial_bytes": m.partial_bytes,
        "files": m.files,
        "complete": m.complete,
        "missing": list(m.missing),
        "modified": when.isoformat(timespec="seconds"),
        "path": str(m.folder),
    }


def _revision(m: store.Model) -> str:
    names = "/".join(m.revisions)
    if m.source == "hf" and m.commit:
        return f"{names}@{m.commit[:8]}" if names else m.commit[:8]
    return names or "–"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _count(parameters: int | None) -> str:
    if parameters is None:
        return "–"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.2f} {unit}"
    return str(parameters)
