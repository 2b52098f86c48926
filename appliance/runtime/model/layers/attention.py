"""Grouped-query attention block: qkv, norm of heads, rope and KV write, backend, out."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from appliance.kernels.ops import Activation, Turns
from appliance.runtime.model.batch import UNSCALED, Batch, KVPages, KVScales
from appliance.runtime.model.build import Build
from appliance.runtime.model.layers.linear import ColumnLinear, Part, RowLinear
from appliance.runtime.model.quant.scheme import Finishing, Source
from appliance.runtime.spec import ModelSpec

SCALE_NAMES = {
    "k": ("k_scale", "k_proj.k_scale", "k_proj.output_scale"),
    "v": ("v_scale", "v_proj.v_scale", "v_proj.output_scale"),
    "both": ("kv_scale",),
}
"""Names checkpoints give the scales of 8-bit K and V, after that of the attention block."""


class HeadNorm(nn.Module):
    """The weight of a norm over each head; the same on every rank."""

    def __init__(self, build: Build, name: str, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.ones(size, dtype=build.dtype, device=build.device), requires_grad=False
        )
        build.place(f"{name}.weight", self._load)

    def _load(self, source: Source) -> None:
        self.weight.copy_(source.read(slice(0, self.weight.shape[0]), None))


class Attention(Finishing):
    """cos_sin: the rotary table, shared by all layers."""

    def __init__(
        self, spec: ModelSpec, build: Build, name: str, layer: int, cos_sin: Tensor
    ) -> None:
        super().__init__()
        a = spec.attention
        self._ops, self._backend, self._eps = build.ops, build.attention, spec.norm_eps
        self._window = a.window_of(layer)
        self.cos_sin = cos_sin
        heads = build.mesh.share(a.heads, "query heads")
        first_kv, kv_heads = build.mesh.kv_share(a.kv_heads)
        d = a.head_dim
        self.qkv = ColumnLinear(
            build,
            spec.hidden,
            [
                Part(f"{name}.q_proj", build.mesh.rank * heads * d, heads * d),
                Part(f"{name}.k_proj", first_kv * d, kv_heads * d),
                Part(f"{name}.v_proj", first_kv * d, kv_heads * d),
            ],
            a.qkv_bias,
        )
        self.out = RowLinear(build, f"{name}.o_proj", a.heads * d, spec.hidden, a.out_bias)
        self.q_norm = HeadNorm(build, f"{name}.q_norm", d) if a.qk_norm else None
        self.k_norm = HeadNorm(build, f"{name}.k_norm", d) if a.qk_norm else None
        self.scales = UNSCALED
        self._found: dict[str, float] = {}
        for which, suffixes in SCALE_NAMES.items():
            for suffix in suffixes:
                if build.narrow_kv:
                    build.offered[f"{name}.{suffix}"] = partial(self._load_scale, which)
                else:
                    build.optional.add(f"{name}.{suffix}")

    def _load_scale(self, which: str, source: Source) -> None:
        value = source.whole().float()
        if value.numel() != 1:
            raise RuntimeError("K and V of 8 bits have one scale a layer here, not one a head")
        if 0 < float(value) < math.inf:  # else nobody has calibrated it
            self._found[which] = float(value)

    def finish(self) -> None:
        both = self._found.get("both", 1.0)
        self.scales = KVScales(self._found.get("k", both), self._found.get("v", both))

    def forward(self, x_TE: Activation, batch: Batch, pages: KVPages) -> Tensor:
        qkv = self.qkv(x_TE)
        q_weight = self.q_norm.weight if self.q_norm is not None else None
        k_weight = self.k_norm.weight if self.k_norm is not None else None
        turns = Turns(batch.positions, self.cos_sin, q_weight, k_weight, self._eps)
        mixed = self._backend.run_unturned(qkv, turns, pages, self._window, self.scales)
        if mixed is None:
            q_THD = self._ops.rope_store(
                qkv, batch.positions, self.cos_sin, pages.k, pages.v, batch.kv_rows, q_weight,
                k_weight, self._eps, self.scales.k, self.scales.v,
            )  # fmt: skip
            mixed = self._backend.run(q_THD, pages, self._window, self.scales)
        out: Tensor = self.out(mixed.flatten(1))
        return out
