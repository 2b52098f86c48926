"""Qwen3 dense: config.json -> ModelSpec. The Llama shape with a norm on each head's q and k."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.runtime.model.families import facts
from appliance.runtime.model.families.llama import spec as llama
from appliance.runtime.spec import ModelSpec


def read(config: dict[str, Any]) -> ModelSpec:
    base = llama.read(config)
    bias = facts.flag(config, "attention_bias", False)
    attention = msgspec.structs.replace(
        base.attention,
        head_dim=facts.integer(config, "head_dim", 128, most=1024),
        qk_norm=True,
        qkv_bias=bias,
        out_bias=bias,
    )
    return msgspec.structs.replace(base, family="qwen3", attention=attention)
