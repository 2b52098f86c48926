"""Weights as they are: float32, bfloat16, float16. On a CPU they are packed when all are there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from appliance.kernels.cpu_linear import PackedLinear, pack
from appliance.kernels.ops import Activation, Ops
from appliance.runtime.model.quant.scheme import Scheme, Shard, Source


class PlainScheme(Scheme):
    def __init__(
        self, outs: int, ins: int, dtype: torch.dtype, device: torch.device, ops: Ops
    ) -> None:
        super().__init__()
        self._ops = ops
        self.weight = nn.Parameter(
            torch.empty((outs, ins), dtype=dtype, device=device), requires_grad=False
        )
        self._packed: PackedLinear | None = None

    def load(self, suffix: str, source: Source, shard: Shard) -> None:
        part = source.read(shard.rows, shard.columns)
        self.weight[shard.at : shard.at + part.shape[0]].copy_(part)

    def fill(self, std: float) -> None:
        self.weight.normal_(0.0, std)

    def finish(self) -> None:
        self._packed = pack(self.weight)
        if self._packed is not None:
            self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)

    def forward(self, x_TI: Activation, bias: Tensor | None) -> Tensor:
        assert isinstance(x_TI, Tensor)  # it offers no rounding
        if self._packed is not None:
            return self._packed(x_TI, bias)
        return self._ops.linear(x_TI, self.weight, bias)

    def gated(self, x_TI: Activation, bias: Tensor | None, ops: Ops) -> Tensor:
        if self._packed is not None or bias is not None:
            return super().gated(x_TI, bias, ops)
        assert isinstance(x_TI, Tensor)
        return ops.gated_linear(x_TI, self.weight)
