"""The decoder's pass for few decode rows as one kernel: what small captured passes run.

In: a batch of single tokens and the rows' page lists. Out: hidden states after the last norm. It
means what `Decoder.forward` means; the weights are the decoder's own. 8-bit weights are widened as
they are read, and tokens are not rounded.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from appliance.kernels import few_rows
from appliance.kernels.few_rows import HEAD, LayerTensors, Shape
from appliance.runtime.model.attention.backend import RowTables
from appliance.runtime.model.batch import Batch, KVPages
from appliance.runtime.model.decoder import Decoder, Layer
from appliance.runtime.model.quant.fp8 import OnlineFp8, StoredFp8
from appliance.runtime.model.quant.plain import PlainScheme
from appliance.runtime.model.quant.scheme import Scheme
from appliance.runtime.spec import ModelSpec

_BEST = {False: 1, True: 2}
"""By whether weights are of 8 bits, which this kernel widens as it reads them; docs/measurements.md
"2 to 64 rows"."""


def why_not(model: Decoder, spec: ModelSpec, tp: int, pages: list[KVPages], page_size: int) -> str:
    """What of this model or of its GPU the kernel does not know; empty: nothing."""
    a = spec.attention
    if tp > 1:
        return "the model is shared by several GPUs"
    if a.head_dim != HEAD:
        return f"its heads are of {a.head_dim}, not of {HEAD}"
    if any(a.window_of(i) for i in range(spec.layers)):
        return "its attention has a window"
    if a.qkv_bias or a.out_bias or spec.mlp_bias:
        return "its linears have biases"
    if {model.norm.weight.dtype, pages[0].k.dtype} != {torch.bfloat16}:
        return "its values or its pages are not of bfloat16"
    schemes = [s for layer in model.layers for s in _schemes(cast(Layer, layer))]
    if len({_narrow(s) for s in schemes}) > 1 or _narrow(schemes[0]) is None:
        return "its linears are stored in a form that it does not read"
    capability = torch.cuda.get_device_capability(pages[0].k.device)
    return few_rows.why_not(shape_of(model, spec, page_size), capability)


def best_up_to(model: Decoder, turns_rows: int) -> int:
    """Rows up to which the kernel takes less time than a pass whose attention turns and stores few
    rows itself (Backend.turns_rows; 0: it has none), behind matmuls of few rows."""
    narrow = bool(_narrow(_schemes(cast(Layer, model.layers[0]))[0]))
    return _BEST[narrow] if turns_rows > few_rows.MAX_ROWS else few_rows.MAX_ROWS


def shape_of(model: Decoder, spec: ModelSpec, page_size: int) -> Shape:
    """What the kernel is compiled for."""
    a, first = spec.attention, cast(Layer, model.layers[0])
    return Shape(
        hidden=spec.hidden, inner=spec.intermediate, heads=a.heads, kv_heads=a.kv_heads,
        page=page_size, head_norm=first.attention.q_norm is not None,
        narrow=bool(_narrow(_schemes(first)[0])),
    )  # fmt: skip


def _schemes(layer: Layer) -> list[Scheme]:
    attention, mlp = layer.attention, layer.mlp
    return [w.weight for w in (attention.qkv, attention.out, mlp.gate_up, mlp.down)]


def _narrow(scheme: Scheme) -> bool | None:
    """Whether the weights are 8-bit floats; None: neither these nor plain ones."""
    if isinstance(scheme, PlainScheme):
        return False
    return True if isinstance(scheme, OnlineFp8 | StoredFp8) else None


class FewRows:
    """For a model of which `why_not` says nothing. pages: the pool, for as long as it is used."""

    def __init__(
        self, model: Decoder, spec: ModelSpec, pages: list[KVPages], page_size: int
    ) -> None:
        layers = [cast(Layer, layer) for layer in model.layers]
        norms = [layer.attention_norm for layer in layers[1:]] + [model.norm]
        tensors = [
            _tensors(layer, behind.weight, own)
            for layer, behind, own in zip(layers, norms, pages, strict=True)
        ]
        self._model = model
        shape, first = shape_of(model, spec, page_size), layers[0].attention_norm.weight
        given = shape, tensors, first, model.norm.weight, spec.norm_eps
        scale = spec.attention.head_dim**-0.5
        self._kernel = few_rows.FewRows(*given, scale)

    def run(self, batch: Batch, tables: RowTables) -> Tensor:
        """[T, hidden] for a batch of single tokens, 8 at most; overwritten by the next run."""
        x = self._model.embedding.embed(batch.ids)
        return self._kernel.run(x, batch.positions, tables.indptr, tables.indices)


def _tensors(layer: Layer, next_norm: Tensor, own: KVPages) -> LayerTensors:
    a = layer.attention
    qkv, out, gate_up, down = _schemes(layer)
    return LayerTensors(
        weights=(_weight(qkv), _weight(out), _weight(gate_up), _weight(down)),
        scales=(_scale(qkv), _scale(out), _scale(gate_up), _scale(down)),
        mlp_norm=layer.mlp_norm.weight,
        next_norm=next_norm,
        q_norm=a.q_norm.weight if a.q_norm is not None else None,
        k_norm=a.k_norm.weight if a.k_norm is not None else None,
        k=own.k,
        v=own.v,
        cos_sin=a.cos_sin,
    )


def _weight(scheme: Scheme) -> Tensor:
    assert isinstance(scheme, PlainScheme | OnlineFp8 | StoredFp8)
    return scheme.weight


def _scale(scheme: Scheme) -> Tensor | None:
    return scheme.scale if isinstance(scheme, OnlineFp8 | StoredFp8) else None
