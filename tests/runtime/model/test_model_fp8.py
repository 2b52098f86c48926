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
from tests.reference import models

SHAPE = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
SETTINGS = {"model.dtype": "float32", "engine.device": "cpu", "engine.threads": 1,
            "engine.max_total_tokens": 4000, "schedule.max_running": 8}  # fmt: skip
E4M3 = torch.float8_e4m3fn


def stored(weight: torch.Tensor, form: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(e4m3 weight, its scale as stored, the float64 weight that both stand for)."""
    wide = weight.double()
    if form == "block":
        rows, columns = -(-wide.shape[0] // 128), -(-wide.shape[1] // 128)
        scale = torch.zeros(rows, columns, dtype=torch.float64)
        spread = torch.zeros_like(wide)
        for i in range(rows):
            for j in range(columns):
                part = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
                scale[i, j] = wide[part].abs().max() / 448
                spread[part] = scale[i, j]
    elif form == "tensor":
        scale = (wide.abs().max() / 448).reshape(())
        spread = scale.expand(wide.shape)
    else:
        scale = wide.abs().amax(1, keepdim=True) / 448
        spread = scale.expand(wide.shape)
    scale, spread = scale.float(), spread.float().double()
    rounded = (wide / spread).float().clamp(-448, 448).to(E4M3)
    return rounded, scale, rounded.double() * spread


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


FORMS = {
    "online": ("rows", {}),
    "tensor": ("tensor", {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "tensor-static": ("tensor", {"quant_method": "fp8", "activation_scheme": "static"}),
    "block": ("block", {"quant_method": "fp8", "activation_scheme": "dynamic",
                        "weight_block_size": [128, 128]}),
    "channel": ("rows", {"quant_method": "compressed-tensors", "ignore": ["lm_head"],
                         "config_groups": {"group_0": {
                             "weights": {"type": "float", "num_bits": 8, "strategy": "channel"},
                             "input_activations": {"type": "float", "num_bits": 8,
                                                   "dynamic": True}}}}),
    "fbgemm": ("rows", {"quant_method": "fbgemm_fp8", "activation_scale_ub": 2.0,
                        "modules_to_not_convert": ["model.layers.0.self_attn.q_proj",
                            "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj",
                            "down_proj"]}),
}  # fmt: skip


def convert(folder, reference, name) -> None:
    """Rewrites the checkpoint in a stored form, and replaces the reference's linears to match."""
    form, config = FORMS[name]
    ignored = (*tuple(config.get("modules_to_not_convert", ())), "lm_head")
    fixed = 0.02 if name == "tensor-static" else 0.0
    tensors = {k: v.clone().contiguous() for k, v in reference.model.state_dict().items()}
    for path, module in list(reference.model.named_modules()):
        if not isinstance(module, nn.Linear) or is_ignored(path, ignored):
            continue
        rounded, scale, wide = stored(module.weight.detach(), form)
        if name != "online":
            tensors[f"{path}.weight"] = rounded
            suffix = "weight_scale_inv" if form == "block" else "weight_scale"
            tensors[f"{path}.{suffix}"] = scale
            if fixed:
                tensors[f"{path}.input_scale"] = torch.tensor(fixed)
        parent = reference.model.get_submodule(path.rpartition(".")[0])
        cap = config.get("activation_scale_ub", 0.0)
        replaced = Rounded(wide, 128 if form == "block" else 0, fixed, cap)
        setattr(parent, path.rpartition(".")[2], replaced)
    for old in folder.glob("model*"):
        old.unlink()
    save_file(tensors, folder / "model.safetensors")
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))


ROUNDED_BEFORE = {"online": 2 * 3, "tensor": 6, "tensor-static": 6, "channel": 6, "block": 0,
                  "fbgemm": 2 + 1}  # fmt: skip
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
    for entry in (name, "q_proj", "self_attn.q_proj", "layers.3", r"re:.*q_proj$"):
        assert is_ignored(name, (entry,)), entry
    for entry in ("proj", "layers.30", "k_proj", r"re:q_proj"):
        assert not is_ignored(name, (entry,)), entry
