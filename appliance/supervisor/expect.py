"""How long a start will take: from what earlier starts took here, else from its bytes.

Phases' times are kept in the state directory by what was started. A start that has no record of its
own is reckoned: its weights at the rate of the last load, the rest as the last start on the same
kind of device had it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from appliance import paths
from appliance.runtime.config import RuntimeConfig
from appliance.status import PhaseName
from appliance.supervisor.replica import PHASES, PhaseTime

KEPT = 64
_RATE = 5e8
"""Bytes a second at which weights are read, where nothing was measured yet."""
_ASSUMED: Mapping[str, Mapping[PhaseName, float]] = {
    "cuda": {"import": 10.0, "connect": 2.0, "compile": 20.0, "plan": 5.0, "capture": 5.0},
    "cpu": {"import": 4.0, "plan": 0.5},
}
_CHAINS_S = 20.0
"""Of torch.compile the first time, where it is asked for."""
_SURE = 0.1
"""Progress from which on a phase's own pace says how long it takes."""

Basis = Literal["", "earlier", "assumed"]
"""earlier: a start of the same took so long here; assumed: reckoned from bytes and other starts."""


class Record(Struct, frozen=True):
    """One start that reached ready. bytes: of the weights on disk."""

    device: str
    bytes: int
    phases: dict[str, float]


class Expected(NamedTuple):
    """Seconds of each phase."""

    phases: dict[str, float]
    basis: Basis


class StartTimes:
    """Reads what earlier starts took once, and writes this one when it is over."""

    def __init__(self, config: RuntimeConfig, path: Path | None = None) -> None:
        self._path = path or paths.start_times()
        self._key = key_of(config)
        self._device = config.engine.device
        self._bytes = weight_bytes(config)
        self._tp, self._compiles = config.engine.tp, config.engine.compile
        self.expected = self._expect(_read(self._path))

    def _expect(self, records: dict[str, Record]) -> Expected:
        own = records.get(self._key)
        if own is not None:
            return Expected(dict(own.phases), "earlier")
        alike = [r for r in records.values() if r.device == self._device]
        phases = dict(_ASSUMED.get(self._device, {}))
        if self._tp == 1:
            phases.pop("connect", None)
        if self._compiles:
            phases["compile"] = phases.get("compile", 0.0) + _CHAINS_S
        for record in alike:  # oldest first, so the newest stays
            phases |= {k: v for k, v in record.phases.items() if k in phases}
        rates = [r.bytes / r.phases["load"] for r in alike if r.bytes and r.phases.get("load")]
        phases["load"] = self._bytes / (rates[-1] if rates else _RATE)
        return Expected({str(k): v for k, v in phases.items()}, "assumed")

    def learn(self, phases: Sequence[PhaseTime]) -> None:
        """Never fails: without a record the next start is reckoned again."""
        took: dict[str, float] = {}
        for phase in phases:
            took[phase.name] = round(took.get(phase.name, 0.0) + phase.seconds, 3)
        records = _read(self._path)
        records.pop(self._key, None)
        records[self._key] = Record(self._device, self._bytes, took)
        newest = dict(list(records.items())[-KEPT:])
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(f".{time.time_ns()}")
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(newest), indent=1))
            temporary.replace(self._path)


def _read(path: Path) -> dict[str, Record]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Record])
    except (OSError, msgspec.DecodeError):
        return {}


def key_of(config: RuntimeConfig) -> str:
    """What makes two starts take alike: the model, its form, and what is made of it."""
    m, e = config.model, config.engine
    return " ".join(
        [
            f"{m.id}@{m.revision or '-'}", m.dtype, m.quantization, m.load_format, e.device,
            f"tp{e.tp}", f"replicas{e.replicas}", f"graphs{len(e.graph_batch_sizes)}",
            f"context{m.context}", *(["compile"] if e.compile else []),
        ]
    )  # fmt: skip


def weight_bytes(config: RuntimeConfig) -> int:
    """Of the model's files; none of made-up weights."""
    if config.model.load_format == "dummy":
        return 0
    with suppress(OSError):
        return sum(p.stat().st_size for p in Path(config.model.path).glob("*.safetensors"))
    return 0


def remaining(expected: Expected, phases: Sequence[PhaseTime], now: float) -> float | None:
    """Seconds until the start is over; None when it takes longer than was expected."""
    at = phases[-1]
    elapsed = now - at.started
    if at.progress >= _SURE:
        rest = elapsed / at.progress * (1 - at.progress)
    else:
        rest = expected.phases.get(at.name, 0.0) - elapsed
    later = PHASES[PHASES.index(at.name) + 1 :] if at.name in PHASES else ()
    to_come = sum(expected.phases.get(name, 0.0) for name in later)
    if rest <= 0 and to_come <= 0:
        return None
    return max(0.0, rest) + to_come
