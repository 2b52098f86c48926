"""A profile as the text of its file, and the user's own profiles on disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from appliance import paths
from appliance.errors import BusyError, UsageError
from appliance.hardware import HardwareSnapshot
from appliance.profiles.schema import SECTIONS, Match, Profile, parse

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}")
GIB = 1 << 30


def text_of(profile: Profile) -> str:
    """TOML that `schema.parse` reads back as the same profile."""
    fields = msgspec.to_builtins(profile)
    lines = [f"{key} = {_value(fields.pop(key))}" for key in ("name", "summary", "suggest")]
    for section, part in fields.items():
        said = {k: v for k, v in part.items() if section in SECTIONS or k == "count" or _says(v)}
        if said:
            lines += ["", f"[{section}]", *(f"{k} = {_value(v)}" for k, v in said.items())]
    return "\n".join(lines) + "\n"


def _says(value: Any) -> bool:
    """Whether a value is another than the nothing that it is by itself."""
    return isinstance(value, bool) or value not in ("", [], 0.0)


def _value(value: Any) -> str:
    # strings, numbers, booleans and lists of them are written alike in JSON and TOML
    return json.dumps(value, ensure_ascii=False)


def place_for(name: str, replace: bool) -> Path:
    """The file of a profile of the user's own.

    UsageError for a name that is none; BusyError when there is one and `replace` is not said.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be the name of a profile.",
            "Use small letters, digits, dots and dashes.",
        )
    path = paths.user_profiles() / f"{name}.toml"
    if path.exists() and not replace:
        raise BusyError(
            f"there is a profile '{name}' of yours already: {path}.",
            "Choose another name, or add --yes to replace it.",
            code="APL-BSY-003",
        )
    return path


def save(profile: Profile, replace: bool) -> Path:
    """Writes a profile among the user's own and returns its file. Errors as in place_for."""
    path = place_for(profile.name, replace)
    text = text_of(profile).encode()
    parse(text, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(text)
    fresh.replace(path)
    return path


def match_of(hardware: HardwareSnapshot, device: str, count: int) -> Match:
    """Matches machines like this one: the same GPU by name and memory, or a CPU alone."""
    if device != "cuda":
        return Match(device="cpu", count=0)
    gpu = hardware.gpus[0]
    gib = gpu.memory_total / GIB
    return Match(
        device="cuda",
        gpus=(gpu.name,),
        memory_min_gib=round(gib * 0.9, 1),
        memory_max_gib=round(gib * 1.1, 1),
        count=count,
    )
