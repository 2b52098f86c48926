"""Architecture name -> family folder, one line each; loads only the family asked for. No torch
until `model_class` is called."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Protocol

import msgspec

from appliance.errors import DamagedError, NotFoundError, UsageError
from appliance.runtime.model import classes, sentence
from appliance.runtime.spec import ModelSpec

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "llama",
    "Qwen3ForCausalLM": "qwen3",
}

CLASSIFIERS = {
    "LlamaForSequenceClassification": "LlamaForCausalLM",
    "MistralForSequenceClassification": "MistralForCausalLM",
    "Qwen2ForSequenceClassification": "Qwen2ForCausalLM",
    "Qwen3ForSequenceClassification": "Qwen3ForCausalLM",
}
"""The same decoder under a head that tells classes."""

BARE = {
    "LlamaModel": "LlamaForCausalLM",
    "MistralModel": "MistralForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
}
"""The same decoder without a head, as models for embeddings are saved."""


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
        decoder = CLASSIFIERS.get(name) or BARE.get(name) or name
        if decoder in FAMILIES:
            family: FamilySpec = _family(FAMILIES[decoder], "spec")
            spec = family.read({**config, "architectures": [decoder]})
            spec = msgspec.structs.replace(spec, architecture=name, headless=name in BARE)
            return classes.read(config, spec) if name in CLASSIFIERS else spec
    known = ", ".join(sorted([*FAMILIES, *CLASSIFIERS, *BARE]))
    raise NotFoundError(
        f"no family knows the architecture {', '.join(names) or '(none named)'}.",
        f"Known architectures: {known}.",
        code="APL-NOT-004",
    )


def read_spec(folder: Path) -> ModelSpec:
    """The shape of the model in a local folder. NotFoundError without config.json; DamagedError
    where it cannot be read; UsageError where it makes no sense."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise NotFoundError(
            f"{folder} holds no config.json, so it is no model.", code="APL-NOT-007"
        ) from e
    except (ValueError, OSError, RecursionError) as e:
        raise DamagedError(f"{path} cannot be read: {e}") from e
    if not isinstance(config, dict):
        raise DamagedError(f"{path} is not a JSON object")
    extra = _beside(folder / "generation_config.json")
    if extra.get("eos_token_id") is not None:
        config["eos_token_id"] = extra["eos_token_id"]
    if config.get("quantization_config") is None:
        stored = _beside(folder / "hf_quant_config.json").get("quantization")
        if stored is not None:
            config["quantization_config"] = _of_modelopt(stored)
    try:
        spec = spec_of(config)
    except UsageError as e:
        raise UsageError(
            f"{folder}/{e.message}" if e.message.startswith("config.json") else e.message,
            e.hint or "Pull the model again; if it stays so, its repository is at fault.",
            code="APL-USE-035",
        ) from e
    return spec if spec.labels else sentence.read(folder, spec)


def _beside(path: Path) -> dict[str, Any]:
    """What a file says that a model may have beside its config.json; nothing where it has none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as e:
        raise DamagedError(f"{path} cannot be read: {e}") from e
    return found if isinstance(found, dict) else {}


def _of_modelopt(stored: Any) -> Any:
    """`quantization` of a hf_quant_config.json, as config.json of later checkpoints says it."""
    if not isinstance(stored, dict):
        return stored
    return {
        "quant_method": "modelopt",
        "quant_algo": stored.get("quant_algo"),
        "kv_cache_quant_algo": stored.get("kv_cache_quant_algo"),
        "ignore": stored.get("exclude_modules"),
    }


def model_class(spec: ModelSpec) -> Any:
    """The family's nn.Module. Loads torch."""
    return _family(spec.family, "model").Model
