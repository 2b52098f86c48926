"""What lies in the hubs' caches beside whole models: its size, its removal, and its digests."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from appliance.hub.layout import layout_of, parts_of
from appliance.hub.manifest import Manifest
from appliance.hub.part import BLOCK, Stopped
from appliance.hub.store import Model, installed

_GIT_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Partial:
    """A file of a download that was not finished."""

    model: str
    path: Path
    size_bytes: int
    modified: float


@dataclass(frozen=True)
class Checked:
    """What a file's bytes are, against what they should be.

    verdict: ok; changed (other bytes than its digest says); missing; unknown (nobody has told
    its digest).
    """

    path: str
    size_bytes: int
    verdict: str


def partials(older_than_s: float = 0.0) -> list[Partial]:
    """Unfinished files of models that nobody is pulling, last written so long ago."""
    found = []
    limit = time.time() - older_than_s
    for model in {m.repo: m for m in installed() if m.partial_bytes}.values():
        if _pulled_now(model):
            continue
        for path in parts_of(model.repo):
            st = path.stat()
            if st.st_mtime <= limit:
                found.append(Partial(model.name, path, st.st_size, st.st_mtime))
    return found


def _pulled_now(model: Model) -> bool:
    lock = layout_of(model.source, model.name, model.commit or "none").lock
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def verify(model: Model, stop: threading.Event, told: Callable[[str], None]) -> Iterator[Checked]:
    """Reads every file of one revision and compares its digest: with its name in Hugging Face's
    layout, else with those that were verified when it was pulled. Raises Stopped."""
    known = Manifest.read(model.source, model.name).verified
    for path in sorted(p for p in model.folder.rglob("*") if p.is_symlink() or p.is_file()):
        shown = path.relative_to(model.folder).as_posix()
        told(shown)
        if not path.is_file():
            yield Checked(shown, 0, "missing")
            continue
        body = path.resolve()
        size = body.stat().st_size
        named = body.name if body.parent.name == "blobs" else ""
        if _SHA256.fullmatch(named) or _GIT_SHA1.fullmatch(named):
            yield Checked(shown, size, "ok" if _digest(body, named, stop) == named else "changed")
        elif not known or size not in {s for s, _ in known.values()}:
            yield Checked(shown, size, "unknown")
        else:
            yield Checked(shown, size, _among(body, size, known, stop))
    for lost in model.missing:
        if not (model.folder / lost).exists():
            yield Checked(lost, 0, "missing")


def _among(body: Path, size: int, known: dict[str, tuple[int, int]], stop: threading.Event) -> str:
    like = [digest for digest, (s, _) in known.items() if s == size]
    for sample in {len(d): d for d in like}.values():
        if _digest(body, sample, stop) in like:
            return "ok"
    return "changed"


def _digest(path: Path, like: str, stop: threading.Event) -> str:
    """Of the kind that `like` is: git's SHA-1 of a blob, or SHA-256."""
    if len(like) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as f:
        while block := f.read(BLOCK):
            if stop.is_set():
                raise Stopped
            digest.update(block)
    return digest.hexdigest()
