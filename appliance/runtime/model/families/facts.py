"""Reads facts out of a decoded config.json, with an error that names the field."""

from __future__ import annotations

import math
from typing import Any, get_args

from appliance.errors import UsageError
from appliance.runtime.spec import RopeKind, RopeSpec

_MISSING = object()
ROPE_KINDS: tuple[RopeKind, ...] = get_args(RopeKind)


def integer(config: dict[str, Any], name: str, default: Any = _MISSING, most: int = 1 << 24) -> int:
    """A positive integer field no larger than `most`; null counts as missing."""
    value = config.get(name)
    if value is None:
        if default is _MISSING:
            raise UsageError(f"config.json lacks '{name}'")
        return int(default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise UsageError(f"config.json: '{name}' is {value!r}, not a number from 1 to {most}")
    return value


def number(
    config: dict[str, Any], name: str, default: float, above: float = -math.inf, most: float = 1e12
) -> float:
    """A number field, larger than `above` and no larger than `most`; null counts as missing."""
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"config.json: '{name}' is {value!r}, not a number")
    if not above < value <= most:
        raise UsageError(f"config.json: '{name}' is {value!r}, which makes no sense")
    return float(value)


def flag(config: dict[str, Any], name: str, default: bool) -> bool:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise UsageError(f"config.json: '{name}' is {value!r}, not true or false")
    return value


def ids(config: dict[str, Any], name: str) -> tuple[int, ...]:
    """One id, a list of ids or nothing."""
    value = config.get(name)
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
        raise UsageError(f"config.json: '{name}' is {value!r}, not token ids")
    return tuple(values)


def dtype(config: dict[str, Any]) -> str:
    value = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if value not in ("float32", "bfloat16", "float16"):
        raise UsageError(f"config.json: dtype {value!r} is not float32, bfloat16 or float16")
    return str(value)


def rope(config: dict[str, Any], max_context: int) -> RopeSpec:
    """rope_parameters (new form) or rope_theta + rope_scaling (old form)."""
    params = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(params, dict):
        raise UsageError("config.json: 'rope_scaling' is not an object")
    theta = number(params, "rope_theta", number(config, "rope_theta", 10000.0, above=0), above=0)
    kind = params.get("rope_type") or params.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise UsageError(
            f"config.json: rope type {kind!r} is not known", f"Known: {', '.join(ROPE_KINDS)}."
        )
    name = "original_max_position_embeddings"
    original = integer(params, name, integer(config, name, max_context))
    low = number(params, "low_freq_factor", 1.0, above=0)
    high = number(params, "high_freq_factor", 4.0, above=0)
    if kind == "llama3" and high <= low:
        raise UsageError("config.json: 'high_freq_factor' is not above 'low_freq_factor'")
    return RopeSpec(
        theta=theta,
        kind=kind,
        factor=number(params, "factor", 1.0, above=0, most=1e4),
        original_context=original,
        low_freq_factor=low,
        high_freq_factor=high,
        beta_fast=number(params, "beta_fast", 32.0, above=0),
        beta_slow=number(params, "beta_slow", 1.0, above=0),
        attention_factor=number(params, "attention_factor", 0.0, above=0),
        mscale=number(params, "mscale", 0.0),
        mscale_all_dim=number(params, "mscale_all_dim", 0.0),
        truncate=flag(params, "truncate", True),
    )
