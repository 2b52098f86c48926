"""The decoder's pass for few decode rows as chained kernels: what small captured passes run.

In: a batch of single tokens and the rows' page lists. Out: hidden states after the last norm. It
means what `Decoder.forward` means; the weights are the decoder's own. 8-bit weights are widened as
they are read, and tokens are not rounded.
"""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor

from appliance.kernels import few_rows
from appliance.kernels.few_rows import Form, Scratch, Tile, tile_for
from appliance.runtime.model.attention.backend import RowTables
from appliance.runtime.model.batch import Batch, KVPages
from appliance.runtime.model.decoder import Decoder, Layer
from appliance.runtime.model.quant.fp8 import OnlineFp8, StoredFp8
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
    if not all(isinstance(s, PlainScheme | OnlineFp8 | StoredFp8) for s in schemes):
        return "its linears are stored in a form that they do not read"
    return ""


def _schemes(layer: Layer) -> list[Scheme]:
    attention, mlp = layer.attention, layer.mlp
    return [w.weight for w in (attention.qkv, attention.out, mlp.gate_up, mlp.down)]


class FewRows:
    """chained False: each kernel starts after the last (and runs in an interpreter). For a model of
    which `why_not` says nothing."""

    def __init__(self, model: Decoder, spec: ModelSpec, *, chained: bool = True) -> None:
        self._model, self._chained, self._eps = model, chained, spec.norm_eps
        a = spec.attention
        layers = [cast(Layer, layer) for layer in model.layers]
        norms = [layer.attention_norm for layer in layers[1:]] + [model.norm]
        self._layers = [
            _LayerWeights(layer, next_norm.weight)
            for layer, next_norm in zip(layers, norms, strict=True)
        ]
        self._first_norm = layers[0].attention_norm.weight
        self._form = Form.against(self._layers[0].qkv.weight, self._first_norm.dtype)
        self._softmax_scale = a.head_dim**-0.5
        self._scratch = Scratch(
            MAX_ROWS, a.kv_heads, a.head_dim, few_rows.SPLITS, model.norm.weight.device
        )

    def run(self, batch: Batch, pages: list[KVPages], tables: RowTables) -> Tensor:
        """[T, hidden] for a batch of T ≤ MAX_ROWS single tokens; K and V are written to `pages`."""
        form, chained, eps = self._form, self._chained, self._eps
        x = few_rows.begin(
            self._model.embedding.embed(batch.ids), self._first_norm, form, chained=chained
        )
        for layer, own in zip(self._layers, pages, strict=True):
            qkv = few_rows.normed(x, *layer.qkv, form, eps, chained=chained)
            mixed = few_rows.attention(
                qkv, batch.positions, layer.cos_sin, own.k, own.v, tables.indptr, tables.indices,
                self._scratch, form, softmax_scale=self._softmax_scale, q_weight_D=layer.q_norm,
                k_weight_D=layer.k_norm, eps=eps, chained=chained,
            )  # fmt: skip
            x = few_rows.summed(mixed, *layer.out, form, x.h, layer.mlp_norm, chained=chained)
            inner = few_rows.normed(x, *layer.gate_up, form, eps, gated=True, chained=chained)
            x = few_rows.summed(inner, *layer.down, form, x.h, layer.next_norm, chained=chained)
        out: Tensor = self._model.norm(x.h)
        return out


class _Matmul(NamedTuple):
    """One linear's stored weight, the scale of its rows, and its tile."""

    weight: Tensor
    scale: Tensor | None
    tile: Tile


def _matmul(scheme: Scheme, place: str, pieces: int = 1) -> _Matmul:
    assert isinstance(scheme, PlainScheme | OnlineFp8 | StoredFp8)
    weight: Tensor = scheme.weight
    scale = None if isinstance(scheme, PlainScheme) else scheme.scale
    outs, ins = weight.shape
    return _Matmul(weight, scale, tile_for(place, outs // pieces, ins, wide=scale is None))


class _LayerWeights:
    """One layer's tensors. next_norm: the weight of the norm behind the layer."""

    def __init__(self, layer: Layer, next_norm: Tensor) -> None:
        a = layer.attention
        qkv, out, gate_up, down = _schemes(layer)
        self.qkv, self.out = _matmul(qkv, "qkv"), _matmul(out, "out")
        self.gate_up, self.down = _matmul(gate_up, "gate_up", 2), _matmul(down, "down")
        self.mlp_norm, self.next_norm = layer.mlp_norm.weight, next_norm
        self.q_norm = a.q_norm.weight if a.q_norm is not None else None
        self.k_norm = a.k_norm.weight if a.k_norm is not None else None
        self.cos_sin = a.cos_sin
