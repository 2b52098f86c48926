"""Llama 1-3.3, Yi, SmolLM, Mistral, Qwen2 and 2.5: config.json -> ModelSpec.

They share one decoder; what differs is biases, the window, the head size and the rotary scaling.
"""

from __future__ import annotations

from typing import Any

from appliance.errors import UsageError
from appliance.runtime.model.families import facts, quantized
from appliance.runtime.spec import AttentionSpec, ModelSpec


def read(config: dict[str, Any]) -> ModelSpec:
    architecture = str(config["architectures"][0])
    act = config.get("hidden_act", "silu")
    if act != "silu":
        raise UsageError(f"config.json: hidden_act {act!r} is not silu")
    hidden = facts.integer(config, "hidden_size")
    layers = facts.integer(config, "num_hidden_layers", most=1024)
    heads = facts.integer(config, "num_attention_heads", most=4096)
    kv_heads = facts.integer(config, "num_key_value_heads", heads, most=4096)
    if heads % kv_heads:
        raise UsageError(
            f"config.json: 'num_key_value_heads' is {kv_heads}, which does not divide the {heads} "
            "query heads"
        )
    head_dim = facts.integer(config, "head_dim", hidden // heads, most=1024)
    if head_dim == 0 or head_dim % 2:
        raise UsageError(f"config.json: 'head_dim' would be {head_dim}, not an even number")
    context = facts.integer(config, "max_position_embeddings", 2048)
    bias = facts.flag(config, "attention_bias", False)
    qwen = architecture == "Qwen2ForCausalLM"
    window, windowed = _window(config, architecture, layers)
    rope = facts.rope(config, context)
    if rope.kind == "dynamic":
        context = int(context * rope.factor)
    return ModelSpec(
        architecture=architecture,
        family="llama",
        hidden=hidden,
        layers=layers,
        intermediate=facts.integer(config, "intermediate_size"),
        vocab=facts.integer(config, "vocab_size"),
        attention=AttentionSpec(
            kind="gqa",
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=rope,
            window=window,
            windowed_layers=windowed,
            qkv_bias=bias or qwen,
            out_bias=bias and not qwen,
        ),
        norm_eps=facts.number(config, "rms_norm_eps", 1e-6, above=0, most=1.0),
        max_context=context,
        tied_embeddings=facts.flag(config, "tie_word_embeddings", False),
        mlp_bias=facts.flag(config, "mlp_bias", False),
        dtype=facts.dtype(config),
        bos_ids=facts.ids(config, "bos_token_id"),
        eos_ids=facts.ids(config, "eos_token_id"),
        quant=quantized.read(config),
        kv_scales=quantized.kv_scales(config),
    )


def _window(config: dict[str, Any], architecture: str, layers: int) -> tuple[int, tuple[int, ...]]:
    """Sliding window and the layers it holds for. Qwen2 windows only its upper layers."""
    size = config.get("sliding_window")
    if size is None:
        return 0, ()
    window = facts.integer(config, "sliding_window")
    if architecture == "MistralForCausalLM":
        return window, ()
    if not facts.flag(config, "use_sliding_window", False):
        return 0, ()
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        known = ("full_attention", "sliding_attention")
        if len(kinds) != layers or not all(k in known for k in kinds):
            raise UsageError(
                f"config.json: 'layer_types' does not name one of {', '.join(known)} for each of "
                f"the {layers} layers"
            )
        windowed = tuple(i for i, k in enumerate(kinds) if k == "sliding_attention")
    else:
        first = facts.integer(config, "max_window_layers", layers, most=1024)
        windowed = tuple(range(first, layers))
    return (window, windowed) if windowed else (0, ())
