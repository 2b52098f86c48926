"""The files that sentence-transformers puts beside a model -> how it makes embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import msgspec

from appliance.errors import DamagedError
from appliance.runtime.spec import ModelSpec

Kind = Literal["", "last", "mean", "first"]

_MODES: dict[str, Kind] = {
    "lasttoken": "last",
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "first",
    "cls_token": "first",
}
_KNOWN = {"Transformer", "Pooling", "Normalize"}
"""Modules that are served; a model with another one, such as a dense layer, gives no embeddings."""


def read(folder: Path, spec: ModelSpec) -> ModelSpec:
    """The spec with its pooling. DamagedError when a file cannot be read."""
    modules = _json(folder / "modules.json")
    kinds: set[str] = set()
    if isinstance(modules, list):
        kinds = {str(m.get("type", "")).rpartition(".")[2] for m in modules if isinstance(m, dict)}
        if not kinds <= _KNOWN:
            return spec
    pooling: Kind = ""
    for path in sorted(folder.glob("*_Pooling/config.json")):
        pooling = pooling or _mode(_json(path))
    normalizes = "Normalize" in kinds if kinds else True
    return msgspec.structs.replace(spec, pooling=pooling, normalizes=normalizes)


def _mode(said: Any) -> Kind:
    """Empty for what is not served: several poolings at once, and weighted ones."""
    if not isinstance(said, dict):
        return ""
    prefix = "pooling_mode_"
    on = [k.removeprefix(prefix) for k, v in said.items() if k.startswith(prefix) and v is True]
    if not on and isinstance(said.get("pooling_mode"), str):
        on = [said["pooling_mode"]]
    return _MODES.get(on[0], "") if len(on) == 1 else ""


def _json(path: Path) -> Any:
    """None when the file is not there."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as e:
        raise DamagedError(f"{path} cannot be read: {e}") from e
