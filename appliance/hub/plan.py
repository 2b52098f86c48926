"""What a pull would do, worked out before the first byte: files, sizes, what is here, what fits."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from appliance.errors import (
    ApplianceError,
    DoesNotFitError,
    NetworkError,
    NotFoundError,
    UsageError,
)
from appliance.hub.choose import Skipped, choose, is_weight
from appliance.hub.fetch import Fetcher
from appliance.hub.layout import Layout, layout_of
from appliance.hub.modelscope import ModelScope, installed_client
from appliance.hub.source import (
    Listing,
    Patience,
    RemoteFile,
    Source,
    aside,
    offline_variable,
    parse_name,
    refuse_offline,
)
from appliance.hub.store import Model, find_model, installed

SourceChoice = Literal["auto", "hf", "modelscope"]
_LARGEST_MARGIN = 1_000_000_000
_LARGEST_CONFIG = 10 << 20


@dataclass(frozen=True)
class Want:
    """What the user asked for."""

    name: str
    """ORG/NAME[@REVISION]"""
    revision: str | None = None
    source: SourceChoice = "auto"
    endpoint: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    all_files: bool = False


@dataclass(frozen=True)
class Take:
    """A file to have in the end, and what of it is on the disk already."""

    file: RemoteFile
    have: int
    """Bytes of the part file, or the whole size."""

    @property
    def here(self) -> bool:
        return self.have == self.file.size


@dataclass(frozen=True)
class Plan:
    """Everything a person or a program wants to know before a pull."""

    source: Source
    listing: Listing
    layout: Layout
    takes: tuple[Take, ...]
    skipped: tuple[Skipped, ...]
    free_bytes: int
    config: dict[str, Any] | None
    """The decoded config.json, when the model has one."""
    note: str = ""
    """Why this hub, when that was not obvious."""

    @property
    def total_bytes(self) -> int:
        return sum(t.file.size for t in self.takes)

    @property
    def here_bytes(self) -> int:
        return sum(t.have for t in self.takes)

    @property
    def remaining_bytes(self) -> int:
        return self.total_bytes - self.here_bytes

    @property
    def weight_bytes(self) -> int:
        return sum(t.file.size for t in self.takes if is_weight(t.file.path))

    @property
    def needed_bytes(self) -> int:
        """Free space that the pull wants: what is to come, and room to breathe."""
        return self.remaining_bytes + min(_LARGEST_MARGIN, self.remaining_bytes // 10)


def make_plan(want: Want, patience: Patience) -> Plan:
    """Asks the hub, looks at the disk, writes nothing.

    NotFoundError, NotAuthorisedError, NetworkError, UsageError, IntegrityError.
    """
    name, revision = parse_name(want.name, want.revision)
    variable = offline_variable(os.environ)
    if variable:
        raise refuse_offline(variable)
    source, listing, note = _resolve(name, revision, want, patience)
    choice = choose(listing, want.include, want.exclude, want.all_files)
    layout = layout_of(listing.source, name, listing.commit)
    return Plan(
        source=source,
        listing=listing,
        layout=layout,
        takes=tuple(look(layout, choice.take)),
        skipped=choice.skipped,
        free_bytes=free_bytes(layout.cache),
        config=_config(source, listing, layout, patience),
        note=note,
    )


def already_here(want: Want) -> Model | None:
    """The complete model on this disk, when the network is switched off; else None."""
    if not offline_variable(os.environ):
        return None
    try:
        return find_model(want.name, want.revision)
    except NotFoundError:
        return None


def look(layout: Layout, files: Sequence[RemoteFile]) -> list[Take]:
    """What of these files is on the disk now."""
    takes = []
    for file in files:
        if layout.present(file) is not None:
            takes.append(Take(file, file.size))
            continue
        try:
            have = layout.part(file).stat().st_size
        except OSError:
            have = 0
        # A part as long as its file is still to be verified and named.
        takes.append(Take(file, have if have < file.size else 0))
    return takes


def check_disk(plan: Plan) -> None:
    """DoesNotFitError when the disk cannot take what is still to come."""
    if plan.free_bytes >= plan.needed_bytes:
        return
    raise DoesNotFitError(
        f"{plan.listing.name} needs {_amount(plan.needed_bytes)} more on "
        f"{plan.layout.cache}, which has {_amount(plan.free_bytes)} free: "
        f"{_amount(plan.needed_bytes - plan.free_bytes)} are lacking.",
        room_hint(plan.listing.name),
        code="APL-FIT-011",
        detail={
            "needed_bytes": plan.needed_bytes,
            "free_bytes": plan.free_bytes,
            "path": str(plan.layout.cache),
        },
    )


def room_hint(name: str) -> str:
    """Which models could go, largest first; or where else to keep them."""
    others = sorted((m for m in installed() if m.name != name), key=lambda m: -m.size_bytes)
    lines = [f"appliance rm {m.name}    (frees {_amount(m.size_bytes)})" for m in others[:3]]
    elsewhere = "eep models on another disk: export HF_HOME=/path (MODELSCOPE_CACHE=/path)"
    lines.append(f"or k{elsewhere}" if lines else f"K{elsewhere}")
    return "\n".join(lines)


def _amount(count: int) -> str:
    """Two digits behind the point, for it is the difference that matters."""
    return f"{count / 1e9:.2f} GB" if abs(count) >= 1e8 else f"{count / 1e6:.2f} MB"


def free_bytes(path: Path) -> int:
    """Bytes a user may still write where `path` is, or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _resolve(
    name: str, revision: str | None, want: Want, patience: Patience
) -> tuple[Source, Listing, str]:
    if want.source == "modelscope":
        _need_modelscope()
        source: Source = ModelScope(want.endpoint, patience)
        return source, source.resolve(name, revision), ""
    from appliance.hub.huggingface import HuggingFace

    first = HuggingFace(want.endpoint, patience)
    try:
        return first, first.resolve(name, revision), ""
    except (NotFoundError, NetworkError) as e:
        if want.source == "hf" or want.endpoint or e.code == "APL-NOT-003":
            raise
        if not installed_client() or "/" not in name:
            raise
        return _second(name, revision, patience, e)


def _second(
    name: str, revision: str | None, patience: Patience, first: ApplianceError
) -> tuple[Source, Listing, str]:
    """ModelScope, because Hugging Face has not the name or cannot be reached."""
    second = ModelScope(None, patience)
    try:
        listing = second.resolve(name, revision)
    except ApplianceError as e:
        if isinstance(first, NotFoundError) and isinstance(e, NotFoundError):
            raise NotFoundError(
                f"there is no {name} on Hugging Face or ModelScope, or it is private.",
                first.hint,
                code="APL-NOT-002",
            ) from e
        raise first from e
    why = "not on Hugging Face" if isinstance(first, NotFoundError) else "Hugging Face is away"
    return second, listing, f"from ModelScope: {why}"


def _need_modelscope() -> None:
    if not installed_client():
        raise UsageError(
            "the ModelScope client is not installed.",
            "pip install 'appliance[modelscope]'",
            code="APL-USE-011",
        )


def _config(
    source: Source, listing: Listing, layout: Layout, patience: Patience
) -> dict[str, Any] | None:
    """config.json, from the disk or the hub; None when there is none or it makes no sense."""
    file = next((f for f in listing.files if f.path == "config.json"), None)
    if file is None or file.size > _LARGEST_CONFIG:
        return None
    present = layout.present(file)
    if present is not None:
        content = present.read_bytes()
    else:
        with closing(Fetcher(patience, threading.Event())) as fetcher:
            content = aside(lambda: fetcher.small(source.request(listing, file), file))
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None
