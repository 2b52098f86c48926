"""Defaults, profile, files, environment, flags -> RuntimeConfig; remembers who set each field."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from appliance import paths
from appliance.errors import UsageError
from appliance.profiles.schema import SECTIONS, Profile, convert, field_types, nearest_field
from appliance.runtime.config import (
    EngineConfig,
    ModelConfig,
    RuntimeConfig,
    ScheduleConfig,
    ServeConfig,
)

_SHORT = {"APPLIANCE_HOST": "serve.host", "APPLIANCE_PORT": "serve.port"}
"""Environment names kept short because people type them."""

LEVELS = ("debug", "info", "warning", "error")


class Composed(Struct, frozen=True):
    """sources: dotted field -> who set it, for every field that is not a default.

    overridden: fields of the profile that a stronger layer changed: (field, profile's value).
    """

    config: RuntimeConfig
    sources: dict[str, str]
    overridden: tuple[tuple[str, Any], ...]
    weaker: dict[str, tuple[tuple[str, Any], ...]] = {}
    """Dotted field -> (who, value) of the layers that set it too and lost, the strongest first."""


def environment_values(environ: Mapping[str, str]) -> dict[str, Any]:
    """APPLIANCE_<SECTION>_<FIELD>, APPLIANCE_HOST, APPLIANCE_PORT, APPLIANCE_LOG_LEVEL."""
    names = {f"APPLIANCE_{f.replace('.', '_').upper()}": f for f in field_types()} | _SHORT
    values: dict[str, Any] = {}
    for name, value in environ.items():
        if name == "APPLIANCE_LOG_LEVEL":
            values["log_level"] = _level(value, name)
        elif name in names:
            values[names[name]] = convert(names[name], value, name)
        elif name.startswith(tuple(f"APPLIANCE_{s.upper()}_" for s in SECTIONS)):
            raise UsageError(
                f"the environment sets {name}, which is no setting." + nearest_field(name, names),
                f"Unset it: `unset {name}`.",
                code="APL-USE-014",
            )
    return values


def file_values(files: Iterable[Path]) -> dict[str, tuple[Any, str]]:
    """Dotted field -> (value, file), the later file the stronger. Files that are not there say
    nothing; one with an unknown setting is refused."""
    values: dict[str, tuple[Any, str]] = {}
    for path in files:
        try:
            table = msgspec.toml.decode(path.read_bytes(), type=dict[str, Any])
        except FileNotFoundError:
            continue
        except OSError as e:
            raise UsageError(
                f"{path} cannot be read: {e.strerror}.",
                f"chmod u+r {path}     as its owner",
                code="APL-USE-012",
            ) from e
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise UsageError(f"{path} is not TOML: {e}.", code="APL-USE-012") from e
        for key, part in table.items():
            if key == "log_level":
                values[key] = (_level(part, str(path)), str(path))
                continue
            if not isinstance(part, dict):
                part = {"": part}
            for name, value in part.items():
                field = f"{key}.{name}" if name else key
                values[field] = (convert(field, value, str(path)), str(path))
    return values


def config_files() -> tuple[Path, ...]:
    """Weakest first. The last is the one that `--config` or APPLIANCE_CONFIG names, if one does.

    The machine's folder is its service's: where that lets nobody else in, it speaks to nobody else.
    """
    named = os.environ.get("APPLIANCE_CONFIG")
    machine = paths.MACHINE["CONFIG"]
    closed = machine.is_dir() and not os.access(machine, os.X_OK)
    return (
        *(() if closed else (machine / "config.toml",)),
        paths.config_dir() / "config.toml",
        Path.cwd() / "appliance.toml",
        *((Path(named),) if named else ()),
    )


def set_values(settings: Iterable[str]) -> dict[str, Any]:
    """`section.key=value` texts of --set -> values."""
    values: dict[str, Any] = {}
    for text in settings:
        field, equals, value = text.partition("=")
        field = field.strip()
        if not equals:
            raise UsageError(
                f"--set {text}: it should be section.key=value.", "For example --set engine.tp=2."
            )
        if field == "log_level":
            values[field] = _level(value, f"--set {text}")
        else:
            values[field] = convert(field, value.strip(), f"--set {text}")
    return values


def compose(
    run: str,
    directory: str,
    model: ModelConfig,
    profile: Profile | None,
    *,
    environment: Mapping[str, Any] | None = None,
    files: Mapping[str, tuple[Any, str]] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Composed:
    """Lays the layers on each other, the stronger over the weaker: flags over environment over
    files over profile over defaults. Values may still be `auto`; plan.resolve answers those.

    model: path, id, names and revision of what is served; all else in it is a default.
    """
    given = profile.values() if profile else {}
    chosen = {f: convert(f, v, profile.name) for f, v in given.items()} if profile else {}
    layers: list[tuple[str, dict[str, Any]]] = [
        (f"profile {profile.name}" if profile else "", chosen),
        *((f"file {whence}", {field: value}) for field, (value, whence) in (files or {}).items()),
        ("environment", dict(environment or {})),
        ("flag", dict(flags or {})),
    ]
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    weaker: dict[str, tuple[tuple[str, Any], ...]] = {}
    for source, layer in layers:
        for field, value in layer.items():
            if field in values:
                weaker[field] = ((sources[field], values[field]), *weaker.get(field, ()))
            values[field], sources[field] = value, source
    overridden = tuple(
        (field, value)
        for field, value in chosen.items()
        if not sources[field].startswith("profile") and values[field] != value
    )
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for field, value in values.items():
        section, _, name = field.partition(".")
        if name:
            sections[section][name] = value
    config = RuntimeConfig(
        run=run,
        dir=directory,
        model=msgspec.structs.replace(model, **sections["model"]),
        profile=profile.name if profile else "none",
        serve=ServeConfig(**sections["serve"]),
        schedule=ScheduleConfig(**sections["schedule"]),
        engine=EngineConfig(**sections["engine"]),
        log_level=values.get("log_level", "info"),
    )
    return Composed(config, sources, overridden, weaker)


def _level(value: Any, whence: str) -> str:
    word = str(value).lower()
    if word not in LEVELS:
        raise UsageError(
            f"{whence}: log_level cannot be {value!r}.", f"It is one of {', '.join(LEVELS)}."
        )
    return word
