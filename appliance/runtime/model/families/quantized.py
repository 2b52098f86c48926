"""quantization_config of a checkpoint -> QuantSpec, for the formats that are served.

Formats: `fp8` (AutoFP8 per tensor; DeepSeek's blocks), `fbgemm_fp8`, `compressed-tensors` in its
float form, `modelopt` FP8, also where hf_quant_config.json alone says so.
"""

from __future__ import annotations

from typing import Any

from appliance.errors import UsageError
from appliance.runtime.spec import QuantSpec

KNOWN = "fp8, fbgemm_fp8, compressed-tensors (8-bit float), modelopt (FP8)"


def read(config: dict[str, Any]) -> QuantSpec | None:
    """None when the checkpoint is plain. UsageError names a format that is not served."""
    quant = config.get("quantization_config")
    if quant is None:
        return None
    if not isinstance(quant, dict):
        raise UsageError("config.json: 'quantization_config' is not an object")
    method = quant.get("quant_method")
    if method == "fp8":
        return _fp8(quant)
    if method == "fbgemm_fp8":
        cap = quant.get("activation_scale_ub")
        return QuantSpec(
            "fp8-rows",
            ignored=_names(quant, "modules_to_not_convert"),
            activation_cap=float(cap) if isinstance(cap, int | float) else 0.0,
        )
    if method == "compressed-tensors":
        if not quant.get("config_groups") and kv_scales(config):
            return None  # only keys and values were calibrated
        return _compressed(quant)
    if method == "modelopt":
        return _modelopt(quant, config)
    raise _unknown(f"quantization {method!r}")


def kv_scales(config: dict[str, Any]) -> bool:
    """Whether the checkpoint says that it holds scales for keys and values of 8-bit floats."""
    quant = config.get("quantization_config")
    if not isinstance(quant, dict):
        return False
    scheme = quant.get("kv_cache_scheme") or {}
    if isinstance(scheme, dict) and scheme.get("type") == "float" and scheme.get("num_bits") == 8:
        return not scheme.get("dynamic", False) and scheme.get("strategy", "tensor") == "tensor"
    return str(quant.get("kv_cache_quant_algo")) == "FP8"


def _unknown(what: str) -> UsageError:
    return UsageError(
        f"config.json: {what} is not served.",
        f"Served: {KNOWN}. Pull the unquantized checkpoint of the model instead.",
        code="APL-USE-005",
    )


def _names(quant: dict[str, Any], field: str) -> tuple[str, ...]:
    value = quant.get(field) or []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise UsageError(f"config.json: quantization_config.{field} is not a list of names")
    return tuple(value)


def _fp8(quant: dict[str, Any]) -> QuantSpec:
    ignored = _names(quant, "modules_to_not_convert") or _names(quant, "ignored_layers")
    scheme = quant.get("activation_scheme", "dynamic")
    if scheme not in ("dynamic", "static"):
        raise _unknown(f"activation_scheme {scheme!r}")
    block = quant.get("weight_block_size")
    if block is None:
        return QuantSpec(
            "fp8-rows", activation="tensor" if scheme == "static" else "token", ignored=ignored
        )
    if block != [128, 128] or scheme == "static":
        raise _unknown(f"weight_block_size {block!r} with {scheme} activations")
    return QuantSpec("fp8-blocks", ignored=ignored, scale_suffix="weight_scale_inv")


def _modelopt(quant: dict[str, Any], config: dict[str, Any]) -> QuantSpec | None:
    algorithm = quant.get("quant_algo")
    if algorithm is None and kv_scales(config):
        return None  # only keys and values were calibrated
    if algorithm != "FP8":
        raise _unknown(f"quantization 'modelopt' of {algorithm}")
    return QuantSpec("fp8-rows", activation="tensor", ignored=_names(quant, "ignore"))


def _compressed(quant: dict[str, Any]) -> QuantSpec:
    groups = quant.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise _unknown("compressed-tensors with several groups")
    group = next(iter(groups.values()))
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    form = (weights.get("type"), weights.get("num_bits"), weights.get("strategy"))
    if form not in (("float", 8, "tensor"), ("float", 8, "channel")):
        raise _unknown(f"compressed-tensors {form}")
    if inputs.get("type") != "float" or inputs.get("num_bits") != 8:
        raise _unknown("compressed-tensors without 8-bit float activations")
    dynamic = inputs.get("dynamic", False)
    return QuantSpec(
        "fp8-rows",
        activation="token" if dynamic else "tensor",
        ignored=_names(quant, "ignore"),
    )
