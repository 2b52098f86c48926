"""The decoder's pass for few decode rows as chained kernels: what small captured passes run.

In: a batch of single tokens and the rows' page lists. Out: hidden states after the last norm. It
means what `Decoder.forward` means; the weights are the decoder's own.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from appliance.kernels import few_rows
from appliance.kernels.few_rows import Norm, Tile, tile_for
from appliance.runtime.model.attention.backend import RowTables
from appliance.runtime.model.batch import Batch, KVPages
from appliance.runtime.model.decoder import Decoder, Layer
from appliance.runtime.model.quant.plain import PlainScheme
from appliance.runtime.model.quant.scheme import Scheme
from appliance.runtime.spec import ModelSpec

MAX_ROWS = 16


def why_not(model: Decoder, spec: ModelSpec, tp: int) -> str:
    """What of this model the chained kernels do not know; empty: nothing."""
    a = spec.attention
    if tp > 1:
        return "the model is shared by several GPUs"
    if a.heads // a.kv_heads > MAX_ROWS:
        return f"{a.heads // a.kv_heads} query heads share a key-value head"
    if any(a.window_of(i) for i in range(spec.layers)):
        return "its attention has a window"
    if a.qkv_bias or a.out_bias or spec.mlp_bias:
        return "its linears have biases"
    widths = (spec.hidden, spec.intermediate, a.heads * a.head_dim)
    if any(w % 64 for w in widths):
        return f"its widths {widths} are not divisible by 64"
    schemes = [s for layer in model.layers for s in _schemes(cast(Layer, layer))]
    if not all(isinstance(s, PlainScheme) for s in schemes):
        return "its linears are quantized"
    return ""


def _schemes(layer: Layer) -> list[Scheme]:
    attention, mlp = layer.attention, layer.mlp
    return [w.weight for w in (attention.qkv, attention.out, mlp.gate_up, mlp.down)]


class FewRows:
    """chained False: each kernel starts after the last (and runs in an interpreter). For a model of
    which `why_not` says nothing."""

    def __init__(self, model: Decoder, spec: ModelSpec, *, chained: bool = True) -> None:
        self._model, self._chained = model, chained
        self._norm_eps, self._scale = spec.norm_eps, spec.attention.head_dim**-0.5
        self._layers = [_LayerWeights(cast(Layer, layer), spec) for layer in model.layers]
        device = model.norm.weight.device
        self._scratch = few_rows.Scratch(
            MAX_ROWS, spec.attention.kv_heads, spec.attention.head_dim, few_rows.SPLITS, device
        )

    def run(self, batch: Batch, pages: list[KVPages], tables: RowTables) -> Tensor:
        """[T, hidden] for a batch of T ≤ MAX_ROWS single tokens; K and V are written to `pages`."""
        x_TE = self._model.embedding.embed(batch.ids)
        for layer, own in zip(self._layers, pages, strict=True):
            qkv = few_rows.linear(
                x_TE, layer.qkv, layer.qkv_tile, norm=layer.attention_norm,
                chained=self._chained,
            )  # fmt: skip
            mixed = few_rows.attention(
                qkv, batch.positions, layer.cos_sin, own.k, own.v, tables.indptr, tables.indices,
                self._scratch, softmax_scale=self._scale, q_weight_D=layer.q_norm,
                k_weight_D=layer.k_norm, eps=self._norm_eps, chained=self._chained,
            )  # fmt: skip
            x_TE = few_rows.linear(
                mixed, layer.out, layer.out_tile, add_MN=x_TE, chained=self._chained
            )
            inner = few_rows.linear(
                x_TE, layer.gate_up, layer.gate_up_tile, norm=layer.mlp_norm,
                gated=True, chained=self._chained,
            )  # fmt: skip
            x_TE = few_rows.linear(
                inner, layer.down, layer.down_tile, add_MN=x_TE, chained=self._chained
            )
        normed: Tensor = self._model.norm(x_TE)
        return normed


class _LayerWeights:
    """One layer's tensors and the tiles its matmuls are laid out in."""

    def __init__(self, layer: Layer, spec: ModelSpec) -> None:
        a = layer.attention
        self.qkv, self.out, self.gate_up, self.down = (_plain(scheme) for scheme in _schemes(layer))
        self.attention_norm = Norm(layer.attention_norm.weight, spec.norm_eps)
        self.mlp_norm = Norm(layer.mlp_norm.weight, spec.norm_eps)
        self.q_norm = a.q_norm.weight if a.q_norm is not None else None
        self.k_norm = a.k_norm.weight if a.k_norm is not None else None
        self.cos_sin = a.cos_sin
        self.qkv_tile: Tile = tile_for("qkv", *self.qkv.shape)
        self.out_tile: Tile = tile_for("out", *self.out.shape)
        self.gate_up_tile: Tile = tile_for("gate_up", spec.intermediate, spec.hidden)
        self.down_tile: Tile = tile_for("down", *self.down.shape)


def _plain(scheme: Scheme) -> Tensor:
    assert isinstance(scheme, PlainScheme)
    return scheme.weight
