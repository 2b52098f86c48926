"""A plain checkpoint -> the same model in each form of 8-bit float that the runtime reads.

Forms are named by who writes them and how: one scale a tensor, a row or a block of 128 × 128;
tokens rounded each by its own scale, or all by one that was found beforehand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

E4M3, LARGEST, BLOCK = torch.float8_e4m3fn, 448.0, 128
Extent = Literal["tensor", "row", "block"]


@dataclass(frozen=True)
class Form:
    """extent: of one scale of a weight. config: the checkpoint's quantization_config. fixed: all
    tokens of a linear are rounded by one scale, which the checkpoint holds."""

    extent: Extent
    config: Mapping[str, Any]
    fixed: bool = False
    plain: tuple[str, ...] = field(default=("lm_head",))
    """Last parts of the names of linears that stay as they are."""

    @property
    def scale_name(self) -> str:
        return "weight_scale_inv" if self.extent == "block" else "weight_scale"


def _compressed(strategy: str, dynamic: bool) -> dict[str, Any]:
    weights = {"type": "float", "num_bits": 8, "strategy": strategy}
    inputs = {"type": "float", "num_bits": 8, "dynamic": dynamic}
    group = {"weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "ignore": ["lm_head"],
            "config_groups": {"group_0": group}}  # fmt: skip


def _fp8(scheme: str, **more: Any) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": scheme, **more}


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FORMS = {
    "tensor": Form("tensor", _fp8("dynamic")),
    "tensor-static": Form("tensor", _fp8("static"), fixed=True),
    "modelopt": Form("tensor", {"quant_method": "modelopt", "quant_algo": "FP8",
                                "ignore": ["lm_head"]}, fixed=True),
    "compressed-static": Form("tensor", _compressed("tensor", dynamic=False), fixed=True),
    "channel": Form("row", _compressed("channel", dynamic=True)),
    "fbgemm": Form("row", {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0,
                           "modules_to_not_convert": ["lm_head", *ATTENTION]},
                   plain=("lm_head", *ATTENTION)),
    "block": Form("block", _fp8("dynamic", weight_block_size=[BLOCK, BLOCK])),
}  # fmt: skip
"""fbgemm: as its published checkpoints, which leave attention as it is."""


def rounded(weight: Tensor, extent: Extent) -> tuple[Tensor, Tensor, Tensor]:
    """(e4m3 [O, I], its float32 scale as checkpoints hold it, the float64 weight both stand for)"""
    wide = weight.double()
    outs, ins = wide.shape
    if extent == "block":
        padded = F.pad(wide, (0, -ins % BLOCK, 0, -outs % BLOCK)).abs()
        blocks = padded.view(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK)
        scale = blocks.amax((1, 3)) / LARGEST
    elif extent == "row":
        scale = wide.abs().amax(1, keepdim=True) / LARGEST
    else:
        scale = wide.abs().max() / LARGEST
    scale = scale.clamp(min=1e-12).float()
    spread = scale.double()
    if extent == "block":
        spread = spread.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:outs, :ins]
    values = (wide / spread).float().clamp(-LARGEST, LARGEST).to(E4M3)
    return values, scale, values.double() * spread


def stored(
    tensors: Mapping[str, Tensor],
    linears: Iterable[str],
    form: Form,
    input_scales: Mapping[str, float],
) -> dict[str, Tensor]:
    """The checkpoint's tensors with `linears` in the form. input_scales: of each of them, where
    tokens have a fixed one."""
    out = dict(tensors)
    for name in linears:
        out[f"{name}.weight"], out[f"{name}.{form.scale_name}"], _ = rounded(
            tensors[f"{name}.weight"], form.extent
        )
        if form.fixed:
            out[f"{name}.input_scale"] = torch.tensor(input_scales[name])
    return out


def linears_of(tensors: Mapping[str, Tensor], form: Form) -> list[str]:
    """Names of the linears of a plain checkpoint that the form rounds: those of its layers."""
    names = [n.removesuffix(".weight") for n in tensors if ".layers." in n and n.endswith("weight")]
    return [
        name
        for name in names
        if tensors[f"{name}.weight"].dim() == 2 and name.rpartition(".")[2] not in form.plain
    ]


def whole_blocks(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Fills the inner width up with zeros to whole blocks, which changes no answer: gate and up are
    read as one matrix, and a block may not reach from one into the other."""
    missing = -config["intermediate_size"] % BLOCK
    for name, tensor in tensors.items():
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            tensors[name] = F.pad(tensor, (0, 0, 0, missing))
        elif name.endswith("down_proj.weight"):
            tensors[name] = F.pad(tensor, (0, missing))
    config["intermediate_size"] += missing


def write(source: Path, target: Path, form: Form, input_scales: Mapping[str, float]) -> None:
    """The model of `source` in the form, as a folder that the runtime loads."""
    target.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    for file in source.glob("*.safetensors"):
        tensors |= load_file(file)
    config = json.loads((source / "config.json").read_text())
    if form.extent == "block":
        whole_blocks(tensors, config)
    out = stored(tensors, linears_of(tensors, form), form, input_scales)
    save_file({n: t.contiguous() for n, t in out.items()}, target / "model.safetensors")
    config["quantization_config"] = dict(form.config)
    (target / "config.json").write_text(json.dumps(config))
    for file in source.glob("*token*.json"):
        if "safetensors" not in file.name:
            shutil.copy(file, target)


@torch.inference_mode()
def input_scales(source: Path, pieces: list[list[int]]) -> dict[str, float]:
    """By which scale all tokens of each linear fit into e4m3, found on `pieces` in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    largest: dict[str, float] = {}

    def look(name: str, x: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), float(x.abs().max()))

    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_pre_hook(lambda _, given, name=name: look(name, given[0]))
    for piece in pieces:
        model(torch.tensor([piece]))
    return {name: value / LARGEST for name, value in largest.items()}
