"""Architecture name -> family folder, one line each; loads only the family asked for. No torch
until `model_class` is called."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from appliance.errors import NotFoundError, UsageError
from appliance.runtime.spec import ModelSpec

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "llama",
    "Qwen3ForCausalLM": "qwen3",
}


class FamilySpec(Protocol):
    """What a family's spec.py offers."""

    def read(self, config: dict[str, Any]) -> ModelSpec:
        """config.json -> ModelSpec; UsageError names the field that is wrong."""


def _family(name: str, part: str) -> Any:
    return importlib.import_module(f"appliance.runtime.model.families.{name}.{part}")


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """The shape of the model that a decoded config.json describes.

    NotFoundError when no family knows its architecture; UsageError when a field makes no sense.
    """
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UsageError("config.json: 'architectures' is not a list of names")
    for name in names:
        if name in FAMILIES:
            family: FamilySpec = _family(FAMILIES[name], "spec")
            return family.read({**config, "architectures": [name]})
    known = ", ".join(sorted(FAMILIES))
    raise NotFoundError(
        f"no family knows the architecture {', '.join(names) or '(none named)'}.",
        f"Known architectures: {known}.",
        code="APL-NOT-004",
    )


def read_spec(folder: Path) -> ModelSpec:
    """The shape of the model in a local folder."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise NotFoundError(f"{folder} holds no config.json, so it is no model.") from e
    except (ValueError, OSError, RecursionError) as e:
        raise UsageError(f"{path} cannot be read: {e}") from e
    if not isinstance(config, dict):
        raise UsageError(f"{path} is not a JSON object")
    generation = folder / "generation_config.json"
    if generation.is_file():
        try:
            extra = json.loads(generation.read_bytes())
        except (ValueError, OSError, RecursionError) as e:
            raise UsageError(f"{generation} cannot be read: {e}") from e
        if isinstance(extra, dict) and extra.get("eos_token_id") is not None:
            config["eos_token_id"] = extra["eos_token_id"]
    return msgspec.structs.replace(spec_of(config), pooling=_pooling(folder))


def _pooling(folder: Path) -> Literal["", "last"]:
    """What the sentence-transformers files beside the model say; only the last token is served."""
    for path in sorted(folder.glob("*_Pooling/config.json")):
        try:
            found = json.loads(path.read_bytes())
        except ValueError as e:
            raise UsageError(f"{path} cannot be read: {e}") from e
        if isinstance(found, dict) and found.get("pooling_mode_lasttoken") is True:
            return "last"
    return ""


def model_class(spec: ModelSpec) -> Any:
    """The family's nn.Module. Loads torch."""
    return _family(spec.family, "model").Model
