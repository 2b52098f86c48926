"""Checkpoints in 8-bit float, of every stored form and rounded as they are read: the engine says
what transformers says when its linears are replaced by the same rounding in float64."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from appliance.errors import UsageError
from appliance.kernels.torch_ops import TorchOps
from appliance.runtime.model.families import quantized
from appliance.runtime.model.quant.select import is_ignored
from appliance.runtime.model.registry import read_spec
from appliance.runtime.offline import Engine
from benchmarks import fp8_checkpoints
from benchmarks.fp8_checkpoints import Form
from tests.reference import models

SHAPE = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
SETTINGS = {"model.dtype": "float32", "engine.device": "cpu", "engine.threads": 1,
            "engine.max_total_tokens": 4000, "schedule.max_running": 8}  # fmt: skip
E4M3 = torch.float8_e4m3fn


class Rounded(nn.Module):
    """A linear whose weight and input are rounded; all arithmetic in float64."""

    def __init__(self, weight: torch.Tensor, run: int = 0, fixed: float = 0.0, cap: float = 0.0):
        super().__init__()
        self.weight, self.run, self.fixed, self.cap = weight, run, fixed, cap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.double().reshape(-1, self.run or x.shape[-1])
        if self.fixed:
            unit = torch.full((flat.shape[0], 1), self.fixed, dtype=torch.float64)
        else:
            largest = flat.abs().amax(1, keepdim=True)
            unit = (largest.clamp(max=self.cap) if self.cap else largest) / 448
            unit = unit.float().double().clamp(min=1e-12)
        rounded = (flat / unit).float().clamp(-448, 448).to(E4M3).double() * unit
        return (rounded.view(*x.shape) @ self.weight.T).float()


PLAIN = ("lm_head", "down_proj", *(f"layers.0.self_attn.{x}_proj" for x in "qkv"))
FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 2.0,
          "modules_to_not_convert": list(PLAIN)}  # fmt: skip
FORMS = {**fp8_checkpoints.FORMS, "online": Form("row", {}),
         "fbgemm": Form("row", FBGEMM, plain=PLAIN)}  # fmt: skip
"""fbgemm: with a cap that is reached, and linears of all kinds left as they are."""
FIXED = 0.02


def convert(folder, reference, name) -> None:
    """Rewrites the checkpoint in a stored form, and replaces the reference's linears to match."""
    form = FORMS[name]
    linears = {path: module for path, module in reference.model.named_modules()
               if isinstance(module, nn.Linear) and not is_ignored(path, form.plain)}  # fmt: skip
    tensors = {k: v.clone().contiguous() for k, v in reference.model.state_dict().items()}
    if name != "online":
        scales = dict.fromkeys(linears, FIXED)
        tensors = fp8_checkpoints.stored(tensors, linears, form, scales)
    run = 128 if form.extent == "block" else 0
    fixed, cap = FIXED if form.fixed else 0.0, form.config.get("activation_scale_ub", 0.0)
    for path, module in linears.items():
        _, _, wide = fp8_checkpoints.rounded(module.weight.detach(), form.extent)
        parent = reference.model.get_submodule(path.rpartition(".")[0])
        setattr(parent, path.rpartition(".")[2], Rounded(wide, run, fixed, cap))
    for old in folder.glob("model*"):
        old.unlink()
    save_file(tensors, folder / "model.safetensors")
    if form.config:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | {"quantization_config": dict(form.config)}
        path.write_text(json.dumps(config))


ROUNDED_BEFORE = {**dict.fromkeys(FORMS, 2 * 3), "fbgemm": 2 + 1}
"""Norms and activations of the two layers that have an 8-bit linear behind them which takes rounded
tokens. fbgemm's first layer has plain qkv, and down is plain in both."""


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("fused", [False, True])
def test_every_form_is_that_of_the_reference(tmp_path, monkeypatch, name, fused):
    passed: list[object] = []
    for word in ("rounded_norm", "rounded_silu_and_mul"):

        def counted(self, *args, inner=getattr(TorchOps, word)):
            passed.append(inner(self, *args))
            return passed[-1]

        monkeypatch.setattr(TorchOps, word, counted)
    reference = models.make(tmp_path, "llama", **SHAPE)
    convert(tmp_path, reference, name)
    settings = {**SETTINGS, "engine.fuse_rounding": fused}
    if name == "online":
        settings["model.quantization"] = "fp8"
    ids = models.prompts()[-1]
    with Engine(tmp_path, settings) as engine:
        assert engine.config.model.quantization == "fp8"
        passed.clear()
        [answer] = engine.generate(
            [ids], {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, "logprobs": 0,
                    "prompt_logprobs": 0},
        )  # fmt: skip
    assert len(passed) == (ROUNDED_BEFORE[name] * 8 if fused else 0)
    want = models.logprobs(reference.model, [*ids, *answer.ids])
    got = [p.logprob for p in answer.prompt_logprobs[1:]] + [p.logprob for p in answer.logprobs]
    # a value within float32 rounding of a border of e4m3 may fall to either side
    assert float((torch.tensor(got) - want).abs().median()) < 2e-3
    assert float((torch.tensor(got) - want).abs().max()) < 0.1


def test_rounding_costs_little(tmp_path):
    reference = models.make(tmp_path, "llama", **SHAPE)
    ids = models.prompts()[-1]
    want = models.logprobs(reference.model, list(ids))
    with Engine(tmp_path, {**SETTINGS, "model.quantization": "fp8"}) as engine:
        [answer] = engine.generate([ids], {"max_tokens": 1, "prompt_logprobs": 0})
    got = torch.tensor([p.logprob for p in answer.prompt_logprobs[1:]])
    assert 0 < float((got - want).abs().mean()) < 0.5


def test_modelopt_may_say_it_in_a_file_of_its_own(tmp_path):
    reference = models.make(tmp_path, "llama", **SHAPE)
    convert(tmp_path, reference, "modelopt")
    ids = models.prompts()[-1]
    with Engine(tmp_path, SETTINGS) as engine:
        [want] = engine.generate([ids], {"max_tokens": 4, "temperature": 0.0})
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    said = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_*"]}
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": said}))
    spec = read_spec(tmp_path)
    assert spec.quant is not None and spec.quant.activation == "tensor" and not spec.kv_scales
    with Engine(tmp_path, SETTINGS) as engine:
        [answer] = engine.generate([ids], {"max_tokens": 4, "temperature": 0.0})
    assert answer.ids == want.ids
    beside.write_text(json.dumps({"quantization": {**said, "kv_cache_quant_algo": "FP8"}}))
    assert read_spec(tmp_path).kv_scales
    only_kv = {"quant_algo": None, "kv_cache_quant_algo": "FP8"}
    beside.write_text(json.dumps({"quantization": only_kv}))
    assert read_spec(tmp_path).quant is None and read_spec(tmp_path).kv_scales
    for wrong in ({"quantization": {"quant_algo": "NVFP4"}}, {"quantization": 7}):
        beside.write_text(json.dumps(wrong))
        with pytest.raises(UsageError):
            read_spec(tmp_path)


@pytest.mark.parametrize("quant", [
    {"quant_method": "awq"}, {"quant_method": None}, 7,
    {"quant_method": "fp8", "activation_scheme": "odd"},
    {"quant_method": "fp8", "weight_block_size": [64, 64]},
    {"quant_method": "compressed-tensors", "config_groups": {}},
    {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"type": "int"}}}},
    {"quant_method": "fp8", "modules_to_not_convert": "lm_head"},
])  # fmt: skip
def test_what_is_not_served_is_refused(quant):
    with pytest.raises(UsageError):
        quantized.read({"quantization_config": quant})


def test_a_stored_form_cannot_be_served_unquantized(tmp_path):
    reference = models.make(tmp_path, "llama", **SHAPE)
    convert(tmp_path, reference, "tensor")
    assert read_spec(tmp_path).quant is not None
    with pytest.raises(UsageError, match="fp8-rows"):
        Engine(tmp_path, {**SETTINGS, "model.quantization": "none"})


def test_parts_of_one_matmul_must_be_stored_alike(tmp_path):
    models.make(tmp_path, "llama", **SHAPE)
    path = tmp_path / "config.json"
    quant = {"quant_method": "fp8", "modules_to_not_convert": ["q_proj"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quant}))
    with pytest.raises(UsageError, match="computed together"):
        Engine(tmp_path, SETTINGS)


def test_names_that_are_left_alone():
    name = "model.layers.3.self_attn.q_proj"
    whole = ("*q_proj", "model.layers.3*", "*.self_attn.*")
    for entry in (name, "q_proj", "self_attn.q_proj", "layers.3", r"re:.*q_proj$", *whole):
        assert is_ignored(name, (entry,)), entry
    for entry in ("proj", "layers.30", "k_proj", r"re:q_proj", "layers.*", "*.mlp.*"):
        assert not is_ignored(name, (entry,)), entry
