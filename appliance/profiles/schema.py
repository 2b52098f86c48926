"""What a profile file may say: for which machine it is, what it sets, and what it stands on."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Literal

import msgspec
import msgspec.inspect
from msgspec import Struct

from appliance.errors import UsageError
from appliance.runtime.config import EngineConfig, ModelConfig, ScheduleConfig, ServeConfig

SECTIONS: dict[str, type[Struct]] = {
    "model": ModelConfig,
    "serve": ServeConfig,
    "schedule": ScheduleConfig,
    "engine": EngineConfig,
}

_OF_A_RUN = {
    "model.path",
    "model.id",
    "model.served_names",
    "model.revision",
    "serve.host",
    "serve.uds",
}
"""Fields that say what is served and where: never a profile's business."""


class Match(Struct, frozen=True, forbid_unknown_fields=True):
    """The machines a profile is for.

    gpus: parts of the GPU's name, any of them, compared without case; empty: any GPU.
    memory_min_gib, memory_max_gib: of one GPU, in GiB as NVML counts; 0: no bound.
    count: GPUs used. cores_min: CPU cores, for a profile without GPUs.
    """

    device: Literal["cpu", "cuda"] = "cuda"
    gpus: tuple[str, ...] = ()
    memory_min_gib: float = 0.0
    memory_max_gib: float = 0.0
    count: int = 1
    cores_min: int = 0


class Evidence(Struct, frozen=True, forbid_unknown_fields=True):
    """What the values stand on. measured: the profile as a whole, by our bench on such a machine.

    fields: the settings of which other values were measured too. The others are derived, and ran
    so in what was measured.
    """

    measured: bool
    note: str
    machine: str = ""
    date: str = ""
    result: str = ""
    fields: tuple[str, ...] = ()

    def of(self, field: str) -> str:
        """What one value stands on, in a word or two."""
        if not self.measured:
            return "derived"
        return "measured" if field in self.fields else "derived, ran so"


class Profile(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    summary: str
    match: Match
    evidence: Evidence
    suggest: str = ""
    """A model on the hub that serves well with it, for those who do not know what to pull."""
    model: dict[str, Any] = {}
    serve: dict[str, Any] = {}
    schedule: dict[str, Any] = {}
    engine: dict[str, Any] = {}

    def values(self) -> dict[str, Any]:
        """Dotted field -> value, converted to the field's type."""
        sections = {
            "model": self.model,
            "serve": self.serve,
            "schedule": self.schedule,
            "engine": self.engine,
        }
        return {
            f"{section}.{name}": value
            for section, part in sections.items()
            for name, value in part.items()
        }


@cache
def field_types() -> Mapping[str, Any]:
    """Dotted name of every field of the runtime config's sections -> its type."""
    return {
        f"{section}.{name}": hint
        for section, kind in SECTIONS.items()
        for name, hint in typing.get_type_hints(kind, include_extras=True).items()
        if name in kind.__struct_fields__
    }


def convert(field: str, value: Any, whence: str) -> Any:
    """`value` as the type of `field`; text is read as the type asks.

    UsageError names the field, where the value came from and what it should be.
    """
    types = field_types()
    if field not in types:
        raise UsageError(
            f"{whence}: there is no setting '{field}'.{nearest_field(field, types)}",
            "`appliance config show` lists every setting.",
            code="APL-USE-014",
        )
    if isinstance(value, str) and typing.get_origin(types[field]) is tuple:
        value = [part.strip() for part in value.strip("[]() ").split(",") if part.strip()]
    try:
        return msgspec.convert(value, types[field], strict=False)
    except msgspec.ValidationError as e:
        raise UsageError(
            f"{whence}: {field} cannot be {value!r}; it takes {takes(field)}.",
            "`appliance config show` prints the value that would be chosen.",
            code="APL-USE-016",
        ) from e


def takes(field: str, shown: Callable[[Any], str] = str) -> str:
    """`whole number from 0 to 65535` or `auto, bfloat16, float16`: what a field may be.

    shown: how one value is written.
    """
    return _takes(msgspec.inspect.type_info(field_types()[field]), shown)


def _takes(kind: msgspec.inspect.Type, shown: Callable[[Any], str]) -> str:
    match kind:
        case msgspec.inspect.LiteralType():
            values = sorted(kind.values, key=lambda value: value != "auto")
            return ", ".join(map(shown, values))
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            whole = isinstance(kind, msgspec.inspect.IntType)
            word = "whole number" if whole else "number"
            if kind.ge is not None and kind.le is not None:
                return f"{word} from {kind.ge:g} to {kind.le:g}"
            return f"{word} ≥ {kind.ge:g}" if kind.ge is not None else word
        case msgspec.inspect.BoolType():
            return f"{shown('true')}, {shown('false')}"
        case msgspec.inspect.VarTupleType():
            return f"list: {_takes(kind.item_type, shown)}"
        case _:
            return "text"


def nearest_field(word: str, known: Iterable[str]) -> str:
    """` Did you mean …?` for a dotted field, by its whole name or its last part; or nothing."""
    names = list(known)
    by_tail = {name.rpartition(".")[2]: name for name in names}
    tail = word.rpartition(".")[2]
    close = difflib.get_close_matches(word, names, 1, 0.7)
    close += [by_tail[t] for t in difflib.get_close_matches(tail, list(by_tail), 1, 0.7)]
    return f" Did you mean '{close[0]}'?" if close else ""


def parse(text: bytes, whence: str) -> Profile:
    """A profile file's content -> Profile, every value checked. UsageError says what is wrong."""
    try:
        profile = msgspec.toml.decode(text, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{whence} is not a profile: {e}.", code="APL-USE-012") from e
    values: Mapping[str, Any] = profile.values()
    for field, value in values.items():
        if field in _OF_A_RUN:
            raise UsageError(
                f"{whence} sets {field}, which belongs to a run and not to a profile.",
                "Remove the line.",
                code="APL-USE-013",
            )
        convert(field, value, whence)
    return profile
