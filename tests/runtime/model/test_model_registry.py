"""config.json -> ModelSpec: each family's facts, and every lie a stranger's file can tell."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import ApplianceError, DamagedError, NotFoundError, UsageError
from appliance.runtime.model.families.facts import ROPE_KINDS
from appliance.runtime.model.registry import FAMILIES, read_spec, spec_of
from appliance.runtime.spec import ModelSpec

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 128,
    "vocab_size": 1000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": [2, 3],
}  # fmt: skip


def read(architecture: str = "LlamaForCausalLM", **changes: Any) -> ModelSpec:
    merged = {**BASE, "architectures": [architecture], **changes}
    return spec_of({k: v for k, v in merged.items() if v is not ...})


def test_every_known_architecture_is_read() -> None:
    for architecture, family in FAMILIES.items():
        spec = read(architecture)
        assert (spec.architecture, spec.family) == (architecture, family)
        assert (spec.hidden, spec.layers, spec.vocab) == (64, 4, 1000)
        assert spec.attention.kv_heads == 2 and spec.eos_ids == (2, 3) and spec.bos_ids == (1,)


def test_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(NotFoundError, match="FancyForCausalLM") as refused:
        read("FancyForCausalLM")
    assert all(name in refused.value.hint for name in FAMILIES)
    with pytest.raises(NotFoundError, match="none named"):
        read(architectures=...)


def test_first_known_architecture_of_several_is_taken() -> None:
    assert read(architectures=["LlamaForCausalLM", "Other"]).family == "llama"
    spec = read(architectures=["Other", "Qwen2ForCausalLM"])
    assert spec.architecture == "Qwen2ForCausalLM" and spec.attention.qkv_bias


def test_defaults_of_older_files() -> None:
    spec = read(
        num_key_value_heads=..., max_position_embeddings=..., rms_norm_eps=..., torch_dtype=...,
        eos_token_id=..., bos_token_id=None,
    )  # fmt: skip
    assert spec.attention.kv_heads == 8 and spec.attention.head_dim == 8
    assert (spec.max_context, spec.norm_eps, spec.dtype) == (2048, 1e-6, "bfloat16")
    assert spec.eos_ids == spec.bos_ids == ()
    assert not spec.tied_embeddings and spec.attention.window == 0


@pytest.mark.parametrize(
    "architecture,bias,expected",
    [
        # (qkv_bias, out_bias, qk_norm)
        ("LlamaForCausalLM", None, (False, False, False)),
        ("LlamaForCausalLM", True, (True, True, False)),
        ("MistralForCausalLM", None, (False, False, False)),
        ("Qwen2ForCausalLM", None, (True, False, False)),
        ("Qwen3ForCausalLM", None, (False, False, True)),
        ("Qwen3ForCausalLM", True, (True, True, True)),
    ],
)
def test_biases_and_norms(
    architecture: str, bias: bool | None, expected: tuple[bool, bool, bool]
) -> None:
    a = read(architecture, attention_bias=bias).attention
    assert (a.qkv_bias, a.out_bias, a.qk_norm) == expected


def test_head_size() -> None:
    assert read("MistralForCausalLM", head_dim=128).attention.head_dim == 128
    assert read("MistralForCausalLM", head_dim=None).attention.head_dim == 8
    assert read("Qwen3ForCausalLM").attention.head_dim == 128


def test_windows_by_family() -> None:
    mistral = read("MistralForCausalLM", sliding_window=1024).attention
    assert [mistral.window_of(i) for i in range(4)] == [1024] * 4
    assert read("MistralForCausalLM", sliding_window=None).attention.window == 0
    assert read("LlamaForCausalLM", sliding_window=1024).attention.window == 0

    def qwen(**changes: Any) -> list[int]:
        a = read("Qwen2ForCausalLM", sliding_window=1024, **changes).attention
        return [a.window_of(i) for i in range(4)]

    assert qwen() == [0] * 4
    assert qwen(use_sliding_window=False, max_window_layers=1) == [0] * 4
    assert qwen(use_sliding_window=True, max_window_layers=1) == [0, 1024, 1024, 1024]
    assert qwen(use_sliding_window=True, max_window_layers=4) == [0] * 4
    kinds = ["full_attention", "sliding_attention"] * 2
    assert qwen(use_sliding_window=True, layer_types=kinds) == [0, 1024, 0, 1024]
    for wrong in (kinds[:3], [*kinds, "sliding_attention"], ["linear_attention"] * 4):
        with pytest.raises(UsageError, match="layer_types"):
            qwen(use_sliding_window=True, layer_types=wrong)
    some = read(
        "Qwen2ForCausalLM", sliding_window=1024, use_sliding_window=True, max_window_layers=1
    ).attention
    assert some.windows(4) == (0, 1024) and some.windows(1) == (0,)


def test_rope_of_both_forms() -> None:
    old = read(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}).attention.rope
    new = read(
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    ).attention.rope
    assert old == new and (old.kind, old.theta, old.factor) == ("linear", 5e5, 2.0)
    plain = read().attention.rope
    assert (plain.kind, plain.theta) == ("default", 10000.0)


def test_rope_kinds() -> None:
    for kind in ROPE_KINDS:
        rope = read(rope_scaling={"rope_type": kind, "factor": 4.0}).attention.rope
        assert rope.kind == kind and rope.original_context == 4096
    llama3 = read(
        rope_scaling={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    ).attention.rope  # fmt: skip
    assert (llama3.factor, llama3.original_context) == (8.0, 8192)
    with pytest.raises(UsageError, match="longrope") as refused:
        read(rope_scaling={"rope_type": "longrope"})
    assert "yarn" in refused.value.hint


def test_dynamic_rope_reaches_past_the_trained_context() -> None:
    assert read(rope_scaling={"type": "dynamic", "factor": 2.0}).max_context == 8192
    assert read(rope_scaling={"type": "yarn", "factor": 4.0}).max_context == 4096


def test_size_of_a_known_model() -> None:
    llama = read(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, vocab_size=128256,
    )  # fmt: skip
    assert llama.parameters() == 8_030_261_248
    assert llama.kv_bytes_per_token() == 131072
    assert llama.kv_bytes_per_token(tp=8) == llama.kv_bytes_per_token(tp=16) == 16384


@pytest.mark.parametrize(
    "field,value",
    [
        ("hidden_size", ...), ("hidden_size", 0), ("hidden_size", -4), ("hidden_size", 1e3),
        ("hidden_size", "64"), ("hidden_size", True), ("hidden_size", 1 << 40),
        ("num_hidden_layers", 100_000), ("num_hidden_layers", [4]),
        ("num_attention_heads", 0), ("num_key_value_heads", 0), ("num_key_value_heads", 3),
        ("num_attention_heads", 128), ("head_dim", 7),
        ("intermediate_size", None), ("vocab_size", 0), ("head_dim", -1), ("head_dim", 1 << 20),
        ("max_position_embeddings", "long"), ("rms_norm_eps", "tiny"),
        ("rms_norm_eps", float("nan")), ("tie_word_embeddings", 1), ("attention_bias", "yes"),
        ("torch_dtype", "int8"), ("hidden_act", "gelu"), ("eos_token_id", "</s>"),
        ("eos_token_id", [1, -2]), ("eos_token_id", [True]), ("bos_token_id", 1.5),
        ("rope_theta", []), ("rope_scaling", "linear"), ("rope_scaling", {"type": 5}),
        ("rope_scaling", {"type": "yarn", "factor": None, "truncate": 3}),
        ("rope_scaling", {"type": "linear", "factor": float("inf")}),
        ("rope_scaling", {"type": "dynamic", "factor": -1.0}),
        ("rope_scaling", {"type": "linear", "factor": 0}),
        ("rope_scaling", {"type": "llama3", "low_freq_factor": 4, "high_freq_factor": 4}),
        ("original_max_position_embeddings", "long"), ("rope_theta", 0), ("rms_norm_eps", -1.0),
    ],
)  # fmt: skip
def test_field_that_makes_no_sense_is_named(field: str, value: Any) -> None:
    with pytest.raises(UsageError) as refused:
        read(**{field: value})
    names = {
        "torch_dtype": "dtype",
        "num_attention_heads": "num_attention_heads|head_dim",
        "rope_scaling": "rope|factor|truncate",
    }
    assert re.search(names.get(field, field), refused.value.message)


@pytest.mark.parametrize("value", ["LlamaForCausalLM", [1], {"a": 1}, 7])
def test_architectures_of_the_wrong_kind(value: Any) -> None:
    with pytest.raises(ApplianceError):
        read(architectures=value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)  # fmt: skip
FIELDS = [
    *BASE, "head_dim", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
    "rope_scaling", "rope_parameters", "rope_theta", "hidden_act", "attention_bias", "mlp_bias",
    "tie_word_embeddings", "dtype", "original_max_position_embeddings",
]  # fmt: skip


@given(
    st.sampled_from(sorted(FAMILIES)),
    st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4),
    st.dictionaries(
        st.sampled_from(["rope_type", "type", "factor", "rope_theta", "beta_fast", "truncate",
                         "original_max_position_embeddings"]),
        json_values | st.sampled_from(ROPE_KINDS), max_size=3,
    ) | st.none(),
)  # fmt: skip
def test_any_file_is_read_or_refused(
    architecture: str, changes: dict[str, Any], rope: dict[str, Any] | None
) -> None:
    config = {**BASE, "architectures": [architecture], **changes}
    if rope is not None:
        config["rope_scaling"] = rope
    try:
        spec = spec_of(config)
    except ApplianceError:
        return
    a = spec.attention
    assert a.heads % a.kv_heads == 0 and a.head_dim % 2 == 0
    assert spec.max_context > 0 and spec.parameters() > 0
    assert all(0 <= layer < spec.layers for layer in a.windowed_layers)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds no config"):
        read_spec(tmp_path)
    path = tmp_path / "config.json"
    nested = "[" * 100_000
    for text, says in (
        ("{", "cannot be read"), ("[]", "not a JSON object"), (nested, "cannot be read"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(DamagedError, match=says):
            read_spec(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DamagedError, match="cannot be read"):
        read_spec(tmp_path)
    path.write_text(json.dumps(BASE))
    assert read_spec(tmp_path).eos_ids == (2, 3)


def test_generation_config_names_the_stop_tokens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    generation = tmp_path / "generation_config.json"
    generation.write_text('{"eos_token_id": [9, 10]}')
    assert read_spec(tmp_path).eos_ids == (9, 10)
    generation.write_text('{"temperature": 0.6}')
    assert read_spec(tmp_path).eos_ids == (2, 3)
    generation.write_text("{")
    with pytest.raises(DamagedError, match="generation_config"):
        read_spec(tmp_path)
