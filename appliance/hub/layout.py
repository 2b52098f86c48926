"""Where each hub's own cache keeps the files of a model, so that other tools find them there.

Plain paths and names; nothing here talks to a hub. A body is a file under its final name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.hub.source import Listing, RemoteFile, SourceKey

PARTIAL = ".appliance.partial"


def hf_cache() -> Path:
    """huggingface_hub's cache folder, by its own rules, without importing it."""
    env = os.environ
    given = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return _expand(given)
    if env.get("HF_HOME"):
        return _expand(env["HF_HOME"]) / "hub"
    return _expand(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def modelscope_cache() -> Path:
    """modelscope's cache folder, by its own rules, without importing it."""
    return _expand(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope")


def _expand(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()


class Layout(Protocol):
    """The place of one revision of one model."""

    @property
    def cache(self) -> Path: ...

    @property
    def repo(self) -> Path:
        """Everything of the model, all revisions."""

    @property
    def folder(self) -> Path:
        """What is served: the files under the names that the listing gives them."""

    @property
    def lock(self) -> Path: ...

    def body(self, file: RemoteFile) -> Path:
        """The final name of a file's bytes."""

    def part(self, file: RemoteFile) -> Path:
        """The name of the bytes while they come; the same in every process."""

    def present(self, file: RemoteFile) -> Path | None:
        """The file's bytes when they are there with the listed size; not yet verified."""

    def show(self, file: RemoteFile) -> None:
        """Makes a verified body visible in `folder`."""

    def finish(self, listing: Listing) -> None:
        """Lets the revision's name point to `folder`. Called when all of it is verified."""


@dataclass(frozen=True)
class HuggingFaceLayout:
    """models--org--name/{blobs/DIGEST, snapshots/COMMIT/PATH -> blob, refs/REVISION}."""

    cache: Path
    repo: Path
    folder: Path
    lock: Path

    def body(self, file: RemoteFile) -> Path:
        return self.repo / "blobs" / file.hex if file.hex else self.folder / file.path

    def part(self, file: RemoteFile) -> Path:
        body = self.body(file)
        return body.with_name(body.name + PARTIAL)

    def present(self, file: RemoteFile) -> Path | None:
        return _with_size((self.folder / file.path, self.body(file)), file.size)

    def show(self, file: RemoteFile) -> None:
        pointer, body = self.folder / file.path, self.body(file)
        if pointer == body or (pointer.exists() and pointer.resolve() == body.resolve()):
            return
        pointer.parent.mkdir(parents=True, exist_ok=True)
        fresh = pointer.with_name(pointer.name + ".appliance.link")
        fresh.unlink(missing_ok=True)
        try:
            fresh.symlink_to(os.path.relpath(body, pointer.parent))
        except OSError:
            # A file system without symbolic links: the snapshot holds the bytes themselves.
            shutil.copyfile(body, fresh)
        os.replace(fresh, pointer)

    def finish(self, listing: Listing) -> None:
        for folder in {p.parent for p in self.folder.rglob("*")}:
            sync_folder(folder)
        tag = self.cache / "CACHEDIR.TAG"
        if not tag.exists():
            tag.write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
        if listing.revision != listing.commit:
            ref = self.repo / "refs" / listing.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(ref, listing.commit.encode())


@dataclass(frozen=True)
class ModelScopeLayout:
    """models/org--name/snapshots/BRANCH/PATH, real files that an update replaces in place."""

    cache: Path
    repo: Path
    folder: Path
    lock: Path

    def body(self, file: RemoteFile) -> Path:
        return self.folder / file.path

    def part(self, file: RemoteFile) -> Path:
        body = self.body(file)
        return body.with_name(body.name + PARTIAL)

    def present(self, file: RemoteFile) -> Path | None:
        return _with_size((self.body(file),), file.size)

    def show(self, file: RemoteFile) -> None:
        """The body lies in the folder already."""

    def finish(self, listing: Listing) -> None:
        """The folder bears the branch's name already."""


def layout_of(source: SourceKey, name: str, commit: str) -> Layout:
    """Where `source` keeps this revision in its cache."""
    flat = name.replace("/", "--")
    if source == "hf":
        cache = hf_cache()
        repo = cache / f"models--{flat}"
        lock = cache / ".locks" / repo.name / "appliance.lock"
        return HuggingFaceLayout(cache, repo, repo / "snapshots" / commit, lock)
    cache = modelscope_cache()
    repo = cache / "models" / flat
    lock = cache / ".lock" / f"appliance_{flat}.lock"
    return ModelScopeLayout(cache, repo, repo / "snapshots" / commit, lock)


def parts_of(repo: Path) -> Iterator[Path]:
    """The files of unfinished downloads of a model, ours only."""
    if repo.is_dir():
        yield from (p for p in repo.rglob(f"*{PARTIAL}") if p.is_file())


def _with_size(paths: tuple[Path, ...], size: int) -> Path | None:
    for path in paths:
        try:
            if path.is_file() and path.stat().st_size == size:
                return path
        except OSError:
            continue
    return None


def sync_folder(folder: Path) -> None:
    """Puts a folder's names on the disk, so that a rename survives a power loss."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the old content or the new one, also after a power loss."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(fresh, "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(fresh, path)
    sync_folder(path.parent)
