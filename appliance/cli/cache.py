"""appliance cache df, prune and verify: what models take on disk, and whether they are whole."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path
from typing import Any

import click

from appliance import paths
from appliance.cli.amounts import seconds
from appliance.cli.late import LateGroup
from appliance.cli.output import Output, gigabytes, table
from appliance.errors import IntegrityError, UsageError
from appliance.hub import store
from appliance.hub.layout import hf_cache, modelscope_cache
from appliance.hub.upkeep import Checked, Partial, partials, verify


@click.group(cls=LateGroup)
def cache() -> None:
    """What models take on disk."""


@cache.command()
@click.pass_obj
def df(out: Output) -> None:
    """Bytes of models, unfinished downloads, compiled kernels and logs, and what is free."""
    models = store.installed()
    rows = [["WHAT", "SIZE", "COUNT", "FREE", "WHERE"]]
    data: list[dict[str, Any]] = []

    def add(what: str, size: int, count: int, where: Path) -> None:
        free = shutil.disk_usage(existing(where)).free
        rows.append([what, gigabytes(size), str(count), gigabytes(free), str(where)])
        data.append(
            {"what": what, "size_bytes": size, "count": count, "free_bytes": free}
            | {"path": str(where)}
        )

    for source, where in (("hf", hf_cache()), ("modelscope", modelscope_cache())):
        own = [m for m in models if m.source == source]
        parts = {m.repo: m.partial_bytes for m in own if m.partial_bytes}
        whole = {m.folder: m.size_bytes for m in own}
        add(f"models of {source}", sum(whole.values()), len(whole), where)
        add(f"unfinished of {source}", sum(parts.values()), len(parts), where)
    for what, where in (
        ("compiled kernels", paths.cache_dir()),
        ("logs and records", paths.state_dir()),
    ):
        add(what, *folder_size(where), where)
    out.result(table(rows, right=(1, 2, 3)), {"schema": "appliance.cache/1", "places": data})


@cache.command()
@click.option("--partials", "want_partials", is_flag=True, help="Unfinished downloads (default).")
@click.option("--kernels", is_flag=True, help="Compiled kernels: made again at the next start.")
@click.option("--older-than", metavar="TIME", help="Only what is older: 30d, 12h.")
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@click.pass_obj
def prune(
    out: Output, /, want_partials: bool, kernels: bool, older_than: str | None, dry_run: bool
) -> None:
    """Remove what can be had again: unfinished downloads, compiled kernels."""
    age = seconds(older_than, "--older-than") if older_than is not None else 0.0
    parts = partials(age) if want_partials or not kernels else []
    folder = paths.cache_dir()
    kernel_bytes, kernel_files = folder_size(folder) if kernels else (0, 0)
    total = sum(p.size_bytes for p in parts) + kernel_bytes
    for line in _listed(parts, kernel_bytes, folder):
        out.note(line)
    count = len(parts) + kernel_files
    if count and not dry_run and not out.confirm(f"Remove {gigabytes(total)}?"):
        raise UsageError("nothing was removed.", "Add --yes to remove it, --dry-run to look.")
    if not dry_run:
        for part in parts:
            part.path.unlink(missing_ok=True)
        if kernel_files:
            shutil.rmtree(folder, ignore_errors=True)
    word = "would be freed" if dry_run else "freed"
    data = {"freed_bytes": total, "files": count, "dry_run": dry_run}
    out.result(
        f"{gigabytes(total)} {word}" if count else "nothing to remove",
        {"schema": "appliance.prune/1", **data},
    )


@cache.command("verify")
@click.argument("models", nargs=-1)
@click.pass_context
def verify_(ctx: click.Context, /, models: tuple[str, ...]) -> None:
    """Read every byte of MODELS, or of all, and compare it with the hub's digests. Exit code 9
    when one is not what it should be."""
    out = ctx.find_object(Output) or Output()
    chosen = [store.find_model(name) for name in models] or store.installed()
    stop = threading.Event()
    found: list[tuple[store.Model, Checked]] = []
    try:
        for model in chosen:
            told = out.detail
            found += [(model, checked) for checked in verify(model, stop, told)]
    except KeyboardInterrupt:
        stop.set()
        raise
    rows = [["MODEL", "OK", "CHANGED", "MISSING", "UNKNOWN"]]
    for model in chosen:
        own = [c.verdict for m, c in found if m is model]
        words = ("ok", "changed", "missing", "unknown")
        rows.append([model.name, *(str(own.count(word)) for word in words)])
    bad = [(m.name, c) for m, c in found if c.verdict in ("changed", "missing")]
    lines = [f"  {name}: {c.path} is {c.verdict}" for name, c in bad]
    lines += [f"  fix  appliance rm {n} && appliance pull {n}" for n in sorted({n for n, _ in bad})]
    data = {
        "schema": "appliance.verify/1",
        "ok": not bad,
        "files": [
            {"model": m.name, "path": c.path, "size_bytes": c.size_bytes, "verdict": c.verdict}
            for m, c in found
        ],
    }
    text = table(rows, right=(1, 2, 3, 4)) if chosen else "No model is on this disk."
    out.result("\n".join([text, *lines]), data)
    if bad:
        ctx.exit(IntegrityError.exit_code)


def _listed(parts: list[Partial], kernel_bytes: int, folder: Path) -> list[str]:
    by_model: dict[str, int] = {}
    for part in parts:
        by_model[part.model] = by_model.get(part.model, 0) + part.size_bytes
    lines = [f"{gigabytes(size)} of unfinished {name}" for name, size in by_model.items()]
    return lines + ([f"{gigabytes(kernel_bytes)} in {folder}"] if kernel_bytes else [])


def folder_size(folder: Path) -> tuple[int, int]:
    """(bytes, files)"""
    size = count = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                size, count = size + path.stat().st_size, count + 1
    return size, count


def existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
