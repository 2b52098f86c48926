"""`appliance list` and `rm`: the models on this disk."""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Sequence
from typing import Any

import click

from appliance.cli.output import Output, gigabytes, table
from appliance.errors import NotFoundError, UsageError
from appliance.hardware import detect
from appliance.hub import local, store
from appliance.hub.remove import plan_removal, remove
from appliance.hub.source import parse_name
from appliance.profiles import match
from appliance.profiles import store as profiles


@click.command("list")
@click.option("--source", type=click.Choice(["hf", "modelscope"]), help="Only this hub's.")
@click.option("--sort", type=click.Choice(["name", "size", "date", "used"]), default="name")
@click.option("--tree", is_flag=True, help="With the revisions of each model and their files.")
@click.pass_obj
def list_(out: Output, source: str | None, sort: str, tree: bool) -> None:
    """Models on this disk, in the caches that other tools use too."""
    models = [m for m in store.installed() if source in (None, m.source)]
    if sort == "size":
        models.sort(key=lambda m: -m.size_bytes)
    elif sort == "date":
        models.sort(key=lambda m: -m.modified)
    elif sort == "used":
        models.sort(key=lambda m: -_used(m))
    data = {"schema": "appliance.list/1", "models": [_row_data(m) for m in models]}
    if not models:
        fitting = match.choose(profiles.load().values(), detect()).profile.suggest or "MODEL"
        out.result(f"No models on this disk.   appliance pull {fitting}", data)
        return
    if tree:
        out.result(_tree(models), data)
        return
    rows = [["NAME", "SOURCE", "REV", "SIZE", "FILES", "LAST USED", "COMPLETE"]]
    rows += [
        [
            m.name,
            m.source,
            revision_text(m),
            gigabytes(m.size_bytes + m.partial_bytes),
            str(m.files),
            _ago(_used(m)),
            "yes" if m.complete else f"no, lacks {_few(m.missing)}",
        ]
        for m in models
    ]
    out.result(table(rows, right=(3, 4, 5)), data)


def _tree(models: Sequence[store.Model]) -> str:
    lines = []
    for (name, source), group in itertools.groupby(models, key=lambda m: (m.name, m.source)):
        lines.append(f"{name}  {source}")
        for m in group:
            whole = "" if m.complete else f"  lacks {_few(m.missing)}"
            lines.append(f"  {revision_text(m)}  {gigabytes(m.size_bytes)}{whole}")
            for path in local.files(m.folder):
                size = gigabytes(path.stat().st_size)
                lines.append(f"    {size:>9}  {path.relative_to(m.folder)}")
    return "\n".join(lines)


def _used(m: store.Model) -> float:
    """When a file of it was read last, as the disk knows: to the day on most machines."""
    read = [path.stat().st_atime for path in local.files(m.folder)]
    return max(read, default=m.modified)


def _ago(when: float) -> str:
    days = int((time.time() - when) / 86400)
    return "today" if days < 1 else f"{days} d ago"


@click.command("rm")
@click.argument("models", nargs=-1, required=True)
@click.option("--revision", metavar="REV", help="Only this one; also as MODEL@REV.")
@click.option("--dry-run", is_flag=True, help="Say what would be freed, and leave.")
@click.pass_obj
def rm(out: Output, models: tuple[str, ...], revision: str | None, dry_run: bool) -> None:
    """Remove MODELS from this disk; MODEL@REV removes one revision."""
    removals = [plan_removal(group) for text in models for group in _groups(text, revision)]
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


def _groups(text: str, wanted: str | None) -> list[list[store.Model]]:
    """The revisions a name means, one list for each hub."""
    name, revision = parse_name(text, wanted)
    same = [m for m in store.installed() if m.name == name]
    if revision is not None and same:
        same = [store.find_model(name, revision)]
    if not same:
        known = ", ".join(dict.fromkeys(m.name for m in store.installed())) or "none"
        raise NotFoundError(
            f"{name} is not on this disk.", f"Models here: {known}.", code="APL-NOT-001"
        )
    repos = dict.fromkeys(m.repo for m in same)
    return [[m for m in same if m.repo == repo] for repo in repos]


def _row_data(m: store.Model) -> dict[str, Any]:
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
        "modified": _iso(m.modified),
        "used": _iso(_used(m)),
        "path": str(m.folder),
    }


def _iso(when: float) -> str:
    return datetime.datetime.fromtimestamp(when, datetime.UTC).isoformat(timespec="seconds")


def revision_text(m: store.Model) -> str:
    names = "/".join(m.revisions)
    if m.source == "hf" and m.commit:
        return f"{names}@{m.commit[:8]}" if names else m.commit[:8]
    return names or "–"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
