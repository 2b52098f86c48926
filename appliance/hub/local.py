"""A model folder on this disk: what it holds, what it lacks. Reads small files only."""

from __future__ import annotations

import json
import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, IntegrityError, NotFoundError
from appliance.hub.choose import is_weight
from appliance.hub.source import is_inside

_LONGEST_HEADER = 100 << 20
_LONGEST_JSON = 64 << 20


@dataclass(frozen=True)
class Card:
    """What a folder says of itself."""

    weight_bytes: int
    parameters: int | None
    dtypes: tuple[str, ...]
    """Of the tensors, most bytes first."""
    license: str | None
    chat_template: bool
    tokenizer: bool


def is_folder_name(text: str) -> bool:
    """Whether a user means a folder rather than a name on a hub."""
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..")


def folder_of(text: str) -> Path:
    """A user's folder, checked; NotFoundError names what it lacks, ApplianceError what shuts it."""
    folder = Path(text).expanduser().resolve()
    try:
        lacks = missing(folder)
    except PermissionError as e:
        raise ApplianceError(
            f"{e.filename} is closed to this user.",
            f"As its owner: chmod o+x each folder above it, and chmod -R o+rX {folder}",
            code="APL-DSK-003",
        ) from e
    if lacks:
        raise NotFoundError(
            f"{folder} is no complete model: it lacks {', '.join(lacks[:5])}.",
            "Give a folder with config.json and safetensors, or a name to pull.",
            code="APL-NOT-007",
        )
    return folder


def missing(folder: Path) -> tuple[str, ...]:
    """Names that a servable model must have and this folder has not; empty when complete."""
    lacks = [] if _plain(folder / "config.json") else ["config.json"]
    index = folder / "model.safetensors.index.json"
    if _plain(index):
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            return (*lacks, "a weight_map in model.safetensors.index.json")
        shards = sorted({str(name) for name in weight_map.values()})
        unsafe = [name for name in shards if not is_inside(name)]
        if unsafe:
            raise IntegrityError(
                f"{index} names a file outside of its folder: {unsafe[0][:120]!r}.",
                "Do not use this model.",
                code="APL-INT-002",
            )
        lacks += [name for name in shards if not _plain(folder / name)]
    elif not weights(folder):
        lacks.append("*.safetensors")
    return tuple(lacks)


def weights(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if is_weight(p.name) and _plain(p))


def files(folder: Path) -> list[Path]:
    """Every file of a snapshot, links followed, unfinished ones left out."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.is_file() and ".appliance." not in p.name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when the file is absent. IntegrityError when it is broken."""
    if not _plain(path):
        return {}
    try:
        if path.stat().st_size > _LONGEST_JSON:
            raise ValueError("it is too long")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as e:
        raise IntegrityError(f"{path} cannot be read: {e}.", code="APL-INT-004") from e
    return content


def card(folder: Path) -> Card:
    """Reads a model folder's own description; IntegrityError when a weight file is broken."""
    found = weights(folder)
    bytes_by_dtype: dict[str, int] = {}
    parameters = 0
    for path in found:
        for dtype, shape, span in _tensors(path):
            bytes_by_dtype[dtype] = bytes_by_dtype.get(dtype, 0) + span
            parameters += math.prod(shape)
    template = any(
        _plain(folder / name) for name in ("chat_template.jinja", "chat_template.json")
    ) or bool(read_json(folder / "tokenizer_config.json").get("chat_template"))
    return Card(
        weight_bytes=sum(p.stat().st_size for p in found),
        parameters=parameters if found else None,
        dtypes=tuple(sorted(bytes_by_dtype, key=lambda d: -bytes_by_dtype[d])),
        license=_license(folder / "README.md"),
        chat_template=template,
        tokenizer=any(_plain(folder / n) for n in ("tokenizer.json", "tokenizer.model")),
    )


def chat_template(folder: Path) -> str:
    """The model's chat template; of several, each under its name. Empty where there is none."""
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        path = folder / name
        if not _plain(path):
            continue
        if path.suffix == ".jinja":
            return path.read_text(errors="replace")
        found = read_json(path).get("chat_template")
        if isinstance(found, list):
            named = [(t.get("name"), t.get("template")) for t in found if isinstance(t, dict)]
            return "\n\n".join(f"{{# {name} #}}\n{text}" for name, text in named)
        if found:
            return str(found)
    return ""


def _tensors(path: Path) -> list[tuple[str, list[int], int]]:
    """(dtype, shape, bytes) of every tensor, from a safetensors header."""
    try:
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, path.stat().st_size - 8):
                raise ValueError("its header does not fit")
            header = json.loads(f.read(length))
            room = path.stat().st_size - 8 - length
        found = []
        for name, tensor in header.items():
            if name != "__metadata__":
                first, end = tensor["data_offsets"]
                if not 0 <= first <= end <= room:
                    raise ValueError(f"{name} ends at byte {end} of {room}: it was cut off")
                found.append((str(tensor["dtype"]), [int(n) for n in tensor["shape"]], end - first))
        return found
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as e:
        raise IntegrityError(
            f"{path} is no safetensors file: {e}.",
            "Remove the model and pull it again.",
            code="APL-INT-004",
        ) from e


def _license(readme: Path) -> str | None:
    """`license:` of a README's front matter."""
    if not _plain(readme):
        return None
    with open(readme, encoding="utf-8", errors="replace") as f:
        if f.readline().strip() != "---":
            return None
        for _, line in zip(range(400), f, strict=False):
            if line.strip() == "---":
                return None
            key, colon, value = line.partition(":")
            if colon and key == "license" and value.strip():
                return value.strip().strip("\"'")
    return None


def _plain(path: Path) -> bool:
    """A regular file, links followed; a pipe or device would hang whoever opens it."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
