"""One setting of a config file written or taken out; comments and all else stay as they are."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from appliance.errors import UsageError
from appliance.profiles.schema import convert

_HEADER = re.compile(r"\s*\[\s*([A-Za-z0-9_.-]+)\s*\]\s*(#.*)?")


def set_value(path: Path, field: str, text: str) -> Any:
    """Writes `field` (dotted, or log_level) with the value that `text` stands for; the value.

    UsageError when there is no such setting or it cannot have this value.
    """
    value = msgspec.to_builtins(_typed(field, text, f"config set {field}"))
    _change(path, field, value)
    return value


def unset_value(path: Path, field: str) -> Any:
    """Takes `field` out and returns the value it had. UsageError when the file does not set it."""
    table = _parsed(_read(path), path)
    section, _, key = field.rpartition(".")
    before = table.get(section, {}).get(key) if section else table.get(key)
    if before is None:
        raise UsageError(
            f"{path} does not set {field}.", "`appliance config path` lists the files."
        )
    _change(path, field, None)
    return before


def _typed(field: str, text: str, whence: str) -> Any:
    if field == "log_level":
        if text not in ("debug", "info", "warning", "error"):
            raise UsageError(
                f"{whence}: it cannot be {text!r}.", "It is debug, info, warning or error."
            )
        return text
    return convert(field, text, whence)


def _change(path: Path, field: str, value: Any) -> None:
    text = _read(path)
    wanted = _parsed(text, path)
    section, _, key = field.rpartition(".")
    part = wanted.setdefault(section, {}) if section else wanted
    if value is None:
        part.pop(key, None)
    else:
        part[key] = value
    edited = "\n".join(_edited(text.splitlines(), section, key, value)).strip("\n") + "\n"
    try:
        same = _without_empty(tomllib.loads(edited)) == _without_empty(wanted)
    except tomllib.TOMLDecodeError:
        same = False
    if not same:  # a value over several lines, or keys with dots: written anew, comments lost
        edited = _dumped(wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(edited)
    fresh.replace(path)


def _edited(lines: list[str], section: str, key: str, value: Any) -> list[str]:
    """`value` None takes the line out."""
    line = None if value is None else f"{key} = {json.dumps(value, ensure_ascii=False)}"
    here, last = "", -1
    if not section:
        last = 0
    for at, text in enumerate(lines):
        header = _HEADER.fullmatch(text)
        if header:
            here = header[1]
        if here != section:
            continue
        if re.match(rf"\s*{re.escape(key)}\s*=", text):
            return [*lines[:at], *([line] if line else []), *lines[at + 1 :]]
        if text.strip():
            last = at + 1
    if line is None:
        return lines
    if last >= 0:
        return [*lines[:last], line, *lines[last:]]
    return [*lines, "", f"[{section}]", line]


def _dumped(table: dict[str, Any]) -> str:
    lines = [f"{k} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, dict)]
    for section, part in table.items():
        if isinstance(part, dict) and part:
            lines += ["", f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in part.items())]
    return "\n".join(lines).strip("\n") + "\n"


def _without_empty(table: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in table.items() if v != {}}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(
            f"{path} cannot be read: {e}.",
            "`appliance config path` lists the files.",
            code="APL-USE-012",
        ) from e


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UsageError(
            f"{path} is not TOML: {e}.", "Correct it first.", code="APL-USE-012"
        ) from e
