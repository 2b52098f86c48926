"""Takes models off the disk. What revisions share stays as long as one of them needs it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from appliance.errors import ApplianceError, BusyError
from appliance.hub.layout import hf_cache, layout_of
from appliance.hub.manifest import Manifest, manifest_path
from appliance.hub.store import Model, in_use, installed


@dataclass(frozen=True)
class Removal:
    """What removing a set of revisions of one model means."""

    models: tuple[Model, ...]
    freed_bytes: int
    whole: bool
    """Nothing of the model stays."""


def plan_removal(models: Sequence[Model]) -> Removal:
    """`models` are revisions of one model. BusyError when a run serves it."""
    first = models[0]
    run = in_use(first)
    if run:
        raise BusyError(
            f"{first.name} is being served by the run {run!r}.",
            f"appliance down {run}",
            code="APL-BSY-010",
        )
    others = [m for m in installed() if m.repo == first.repo and m not in models]
    whole = not others
    if whole:
        freed = _folder_bytes(first.repo)
    elif first.source == "hf":
        freed = int(_strategy(models).expected_freed_size)
    else:
        freed = sum(m.size_bytes for m in models)
    return Removal(tuple(models), freed, whole)


def remove(removal: Removal) -> int:
    """Bytes freed. BusyError while a pull of the model runs."""
    first = removal.models[0]
    lock_path = layout_of(first.source, first.name, first.commit or "none").lock
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock_path, timeout=0):
            _delete(removal)
    except Timeout:
        raise BusyError(
            f"{first.name} is being pulled right now.",
            "Wait for the pull, or stop it with Ctrl-C where it runs.",
            code="APL-BSY-011",
        ) from None
    except OSError as e:
        raise ApplianceError(
            f"{first.name} cannot be removed: {e.strerror or e} ({e.filename or first.repo}).",
            "Check who owns the folder.",
            code="APL-DSK-002",
        ) from e
    return removal.freed_bytes


def _delete(removal: Removal) -> None:
    first = removal.models[0]
    if first.source == "hf" and any(m.commit for m in removal.models):
        _strategy(removal.models).execute()
    else:
        for model in removal.models:
            if model.folder.is_dir():
                shutil.rmtree(model.folder)
    if removal.whole:
        shutil.rmtree(first.repo, ignore_errors=not first.repo.exists())
        manifest_path(first.source, first.name).unlink(missing_ok=True)
        return
    manifest = Manifest.read(first.source, first.name)
    for model in removal.models:
        manifest.snapshots.pop(str(model.folder), None)
    manifest.save()


def _strategy(models: Sequence[Model]) -> Any:
    """huggingface_hub's own plan: it knows which blobs other revisions and repositories need."""
    from huggingface_hub import scan_cache_dir

    commits = [m.commit for m in models if m.commit]
    return scan_cache_dir(hf_cache()).delete_revisions(*commits)


def _folder_bytes(repo: Path) -> int:
    """Bytes of the model's own files; links may lead to what other models share."""
    return sum(p.lstat().st_size for p in repo.rglob("*") if p.is_file() and not p.is_symlink())
