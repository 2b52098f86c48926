"""Quantization and names of linears -> Scheme: one table."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from appliance.errors import UsageError
from appliance.kernels.ops import Ops
from appliance.runtime.model.quant.fp8 import BlockFp8, OnlineFp8, StoredFp8
from appliance.runtime.model.quant.plain import PlainScheme
from appliance.runtime.model.quant.scheme import Scheme
from appliance.runtime.spec import QuantSpec


@dataclass(frozen=True, slots=True)
class Wanted:
    """One linear: its size on this rank, and what it is made with."""

    outs: int
    ins: int
    dtype: torch.dtype
    device: torch.device
    ops: Ops
    quant: QuantSpec | None


def _plain(w: Wanted) -> Scheme:
    return PlainScheme(w.outs, w.ins, w.dtype, w.device, w.ops)


def _online(w: Wanted) -> Scheme:
    return OnlineFp8(w.outs, w.ins, w.device, w.ops)


def _rows(w: Wanted) -> Scheme:
    assert w.quant is not None
    return StoredFp8(w.outs, w.ins, w.device, w.ops, w.quant)


def _blocks(w: Wanted) -> Scheme:
    return BlockFp8(w.outs, w.ins, w.device, w.ops)


SCHEMES: dict[str, Callable[[Wanted], Scheme]] = {
    "none": _plain,
    "fp8": _online,
    "fp8-rows": _rows,
    "fp8-blocks": _blocks,
}


def is_ignored(name: str, ignored: tuple[str, ...]) -> bool:
    """Whether a linear's name is one of those left as they are: whole, or its last parts, or a
    `re:` pattern from its beginning, or one with `*` of all of it."""
    for entry in ignored:
        if entry.startswith("re:"):
            if re.match(entry[3:], name):
                return True
        elif "*" in entry:
            if fnmatchcase(name, entry):
                return True
        elif name == entry or name.endswith("." + entry) or f".{entry}." in f".{name}.":
            return True
    return False


def select(quantization: str, names: list[str], wanted: Wanted) -> Scheme:
    """quantization: the config's value. UsageError when merged linears are not stored alike."""
    quant = wanted.quant
    if quant is None:
        return SCHEMES[quantization](wanted)
    ignored = [is_ignored(name, quant.ignored) for name in names]
    if any(ignored) and not all(ignored):
        raise UsageError(
            f"{', '.join(names)} are computed together, and only some of them are quantized.",
            "Pull another quantization of the model.",
        )
    return SCHEMES["none" if ignored[0] else quant.kind](wanted)
