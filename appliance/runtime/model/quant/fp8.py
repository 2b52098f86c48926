"""8-bit float weights (e4m3): a scale a row, found online or stored, or a scale a block.

Every per-tensor scale is spread over its rows, so that merged linears keep each part's own.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from appliance.kernels.ops import Activation, Ops, Rounding
from appliance.runtime.model.quant.scheme import Scheme, Shard, Source
from appliance.runtime.spec import QuantSpec

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0


def _parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype, device=device), requires_grad=False)


class OnlineFp8(Scheme):
    """A plain checkpoint whose rows are rounded to e4m3 as they are read; no wide copy is kept."""

    def __init__(self, outs: int, ins: int, device: torch.device, ops: Ops) -> None:
        super().__init__()
        self._ops = ops
        self.weight = _parameter(outs, ins, dtype=E4M3, device=device)
        self.scale = _parameter(outs, dtype=torch.float32, device=device)

    def load(self, suffix: str, source: Source, shard: Shard) -> None:
        part = source.read(shard.rows, shard.columns)
        self._put(part.to(self.weight.device), shard.at)

    def _put(self, part: Tensor, at: int) -> None:
        wide = part.float()
        scale = wide.abs().amax(1).clamp(min=1e-12) / LARGEST
        rows = slice(at, at + part.shape[0])
        self.weight[rows].copy_((wide / scale[:, None]).clamp(-LARGEST, LARGEST).to(E4M3))
        self.scale[rows].copy_(scale)

    def fill(self, std: float) -> None:
        outs, ins = self.weight.shape
        for at in range(0, outs, 4096):
            rows = min(4096, outs - at)
            self._put(torch.randn(rows, ins, device=self.weight.device) * std, at)

    @property
    def rounding(self) -> Rounding:
        return Rounding(None, 0.0)

    def forward(self, x_TI: Activation, bias: Tensor | None) -> Tensor:
        return self._ops.fp8_linear(x_TI, self.weight, self.scale, None, 0.0, bias)


class StoredFp8(Scheme):
    """A checkpoint of e4m3 rows with their scales, and perhaps one for all activations."""

    def __init__(
        self, outs: int, ins: int, device: torch.device, ops: Ops, quant: QuantSpec
    ) -> None:
        super().__init__()
        self._ops, self._cap = ops, quant.activation_cap
        self._merging = threading.Lock()
        self.weight = _parameter(outs, ins, dtype=E4M3, device=device)
        self.scale = _parameter(outs, dtype=torch.float32, device=device)
        self.suffixes = ("weight", "weight_scale")
        self.input_scale: nn.Parameter | None = None
        if quant.activation == "tensor":
            self.suffixes = (*self.suffixes, "input_scale")
            self.input_scale = _parameter(1, dtype=torch.float32, device=device)

    def load(self, suffix: str, source: Source, shard: Shard) -> None:
        count = shard.rows.stop - shard.rows.start
        if suffix == "weight":
            self.weight[shard.at : shard.at + count].copy_(source.read(shard.rows, shard.columns))
        elif suffix == "weight_scale":
            whole = source.whole().float().flatten()
            part = whole[shard.rows] if whole.numel() > 1 else whole.expand(count)
            self.scale[shard.at : shard.at + count].copy_(part)
        else:
            assert self.input_scale is not None
            value = source.whole().float().max().to(self.input_scale.device)
            with self._merging:  # merged linears have one, and come by several threads
                self.input_scale.copy_(torch.maximum(self.input_scale, value))

    def fill(self, std: float) -> None:
        wide = torch.randn(self.weight.shape, device=self.weight.device) * (LARGEST / 4)
        self.weight.copy_(wide.clamp(-LARGEST, LARGEST).to(E4M3))
        self.scale.fill_(std / (LARGEST / 4))
        if self.input_scale is not None:
            self.input_scale.fill_(0.05)

    @property
    def rounding(self) -> Rounding:
        return Rounding(self.input_scale, self._cap)

    def forward(self, x_TI: Activation, bias: Tensor | None) -> Tensor:
        return self._ops.fp8_linear(
            x_TI, self.weight, self.scale, self.input_scale, self._cap, bias
        )


class BlockFp8(Scheme):
    """e4m3 with a scale for each 128 × 128 block; tokens are rounded in runs of 128.

    Shards must begin and end at borders of blocks, but for the matrix's own end.
    """

    suffixes = ("weight", "weight_scale_inv")
    _SIZE = 128

    def __init__(self, outs: int, ins: int, device: torch.device, ops: Ops) -> None:
        super().__init__()
        self._ops = ops
        self.weight = _parameter(outs, ins, dtype=E4M3, device=device)
        blocks = -(-outs // self._SIZE), -(-ins // self._SIZE)
        self.scale = _parameter(*blocks, dtype=torch.float32, device=device)

    def load(self, suffix: str, source: Source, shard: Shard) -> None:
        count = shard.rows.stop - shard.rows.start
        if suffix == "weight":
            self.weight[shard.at : shard.at + count].copy_(source.read(shard.rows, shard.columns))
            return
        rows = self._blocks(shard.rows)
        columns = None if shard.columns is None else self._blocks(shard.columns)
        if shard.at % self._SIZE:
            raise RuntimeError(f"its rows begin at {shard.at}, inside a block of {self._SIZE}")
        part = source.read(rows, columns).float()
        at = shard.at // self._SIZE
        self.scale[at : at + part.shape[0]].copy_(part)

    def _blocks(self, part: slice) -> slice:
        if part.start % self._SIZE:
            raise RuntimeError(f"a shard begins at {part.start}, inside a block of {self._SIZE}")
        return slice(part.start // self._SIZE, -(-part.stop // self._SIZE))

    def fill(self, std: float) -> None:
        wide = torch.randn(self.weight.shape, device=self.weight.device) * (LARGEST / 4)
        self.weight.copy_(wide.clamp(-LARGEST, LARGEST).to(E4M3))
        self.scale.fill_(std / (LARGEST / 4))

    @property
    def rounding(self) -> Rounding:
        return Rounding(None, 0.0, self._SIZE)

    def forward(self, x_TI: Activation, bias: Tensor | None) -> Tensor:
        return self._ops.fp8_block_linear(x_TI, self.weight, self.scale, bias)
