"""The models on this disk, in both hubs' caches. Never talks to a hub; loads none of their code."""

from __future__ import annotations

import difflib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance import paths
from appliance.errors import ApplianceError, NotFoundError
from appliance.hub import local
from appliance.hub.layout import hf_cache, modelscope_cache, parts_of
from appliance.hub.manifest import Manifest, lacking
from appliance.hub.source import SourceKey, parse_name


@dataclass(frozen=True)
class Model:
    """One revision of one model on this disk."""

    name: str
    source: SourceKey
    commit: str
    """Commit (Hugging Face) or branch (ModelScope); empty when only parts are here."""
    revisions: tuple[str, ...]
    """Names that point to it, such as main."""
    repo: Path
    folder: Path
    size_bytes: int
    partial_bytes: int
    """Of unfinished files of the whole model."""
    files: int
    missing: tuple[str, ...]
    modified: float
    """Seconds since the epoch."""

    @property
    def complete(self) -> bool:
        return not self.missing


def installed() -> list[Model]:
    """Every model of both caches, by name, newest revision first."""
    models = [*_hugging_face(), *_modelscope()]
    return sorted(models, key=lambda m: (m.name.lower(), m.source, -m.modified))


def find(name: str, revision: str | None = None) -> Path:
    """The folder to serve for a name, or for a folder given as such. Offline, always.

    `name` may hold @REVISION. NotFoundError names the `appliance pull` that cures it.
    """
    if local.is_folder_name(name):
        return local.folder_of(name)
    return find_model(name, revision).folder


def find_model(name: str, revision: str | None = None) -> Model:
    """Like `find`, for the whole record."""
    wanted, asked = parse_name(name, revision)
    everything = installed()
    same = [m for m in everything if m.name == wanted]
    command = f"appliance pull {wanted}" + (f"@{asked}" if asked else "")
    matching = [m for m in same if asked is None or _is_revision(m, asked)]
    whole = [m for m in matching if m.complete]
    if whole:
        return min(whole, key=lambda m: (not _is_default(m), m.source != "hf", -m.modified))
    if matching:
        first = matching[0]
        lacks = ", ".join(first.missing[:3])
        rest = f" and {len(first.missing) - 3} more" if len(first.missing) > 3 else ""
        hub = " --source modelscope" if first.source == "modelscope" else ""
        raise NotFoundError(
            f"{wanted} is on this disk only in part: it lacks {lacks}{rest}.",
            command + hub,
            code="APL-NOT-008",
        )
    if same:
        here = ", ".join(_label(m) for m in same)
        raise NotFoundError(
            f"{wanted} is on this disk, but not its revision {asked!r}; here: {here}.",
            command,
            code="APL-NOT-003",
        )
    hint = command + _near(wanted, everything)
    if (Path(wanted) / "config.json").is_file():
        hint = f"It is a folder here, which is written ./{wanted}\n{hint}"
    raise NotFoundError(f"{wanted} is not on this disk.", hint, code="APL-NOT-001")


def in_use(model: Model) -> str:
    """The name of the live run that serves this model, or an empty string."""
    for config in sorted(paths.runtime_dir().glob("*/config.json")):
        try:
            served = Path(json.loads(config.read_bytes())["model"]["path"]).resolve()
        except (OSError, ValueError, KeyError, TypeError):
            continue
        inside = model.repo.resolve() in (served, *served.parents)
        if inside and _answers(paths.control_socket(config.parent)):
            return config.parent.name
    return ""


def _answers(control: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(1.0)
        try:
            s.connect(str(control))
        except OSError:
            return False
    return True


def _hugging_face() -> Iterator[Model]:
    root = hf_cache()
    for repo in sorted(root.glob("models--*")) if root.is_dir() else ():
        name = repo.name.removeprefix("models--").replace("--", "/")
        refs: dict[str, list[str]] = {}
        for ref in (repo / "refs").rglob("*"):
            if ref.is_file() and not ref.name.endswith(".tmp"):
                commit = ref.read_text(errors="replace").strip()
                refs.setdefault(commit, []).append(ref.relative_to(repo / "refs").as_posix())
        folders = sorted(p for p in (repo / "snapshots").glob("*") if p.is_dir())
        for folder in folders:
            names = tuple(sorted(refs.get(folder.name, ())))
            yield _model(name, "hf", folder.name, names, repo, folder)
        if not folders:
            yield from _parts_only(name, "hf", repo)


def _modelscope() -> Iterator[Model]:
    root = modelscope_cache()
    for repo in sorted(root.glob("models/*--*")):
        name = repo.name.replace("--", "/")
        folders = sorted(p for p in (repo / "snapshots").glob("*") if p.is_dir())
        for folder in folders:
            yield _model(name, "modelscope", folder.name, (folder.name,), repo, folder)
        if not folders:
            yield from _parts_only(name, "modelscope", repo)
    for config in sorted([*root.glob("models/*/*/config.json"), *_older(root)]):
        folder = config.parent
        name = f"{folder.parent.name}/{folder.name.replace('___', '.')}"
        if folder.name != "snapshots" and "--" not in folder.parent.name:
            yield _model(name, "modelscope", "master", ("master",), folder, folder)


def _older(root: Path) -> list[Path]:
    """Layouts of clients before 1.38: dots as three underscores, no snapshots."""
    return [*root.glob("hub/models/*/*/config.json"), *root.glob("hub/*/*/config.json")]


def _parts_only(name: str, source: SourceKey, repo: Path) -> Iterator[Model]:
    if any(parts_of(repo)):
        yield _model(name, source, "", (), repo, repo / "snapshots")


def _model(
    name: str, source: SourceKey, commit: str, refs: tuple[str, ...], repo: Path, folder: Path
) -> Model:
    found = local.files(folder) if commit else []
    sizes = {p.resolve(): p.stat().st_size for p in found}
    try:
        lacks = local.missing(folder)
    except ApplianceError as e:
        lacks = (e.message,)
    recorded = Manifest.read(source, name).snapshots.get(str(folder))
    if recorded is not None:
        lacks = tuple(dict.fromkeys((*lacks, *lacking(folder, recorded))))
    place = folder if folder.exists() else repo
    return Model(
        name=name,
        source=source,
        commit=commit,
        revisions=refs,
        repo=repo,
        folder=folder,
        size_bytes=sum(sizes.values()),
        partial_bytes=sum(p.stat().st_size for p in parts_of(repo)),
        files=len(found),
        missing=lacks,
        modified=place.stat().st_mtime,
    )


def _is_revision(model: Model, asked: str) -> bool:
    by_commit = len(asked) >= 7 and model.commit.startswith(asked)
    return by_commit or asked == model.commit or asked in model.revisions


def _is_default(model: Model) -> bool:
    return bool({"main", "master"} & set(model.revisions))


def _label(model: Model) -> str:
    return "/".join(model.revisions) or model.commit[:12] or "parts only"


def _near(wanted: str, everything: list[Model]) -> str:
    names = sorted({m.name for m in everything if m.complete})
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
    return f"\non this disk: {', '.join(close)}" if close else ""
