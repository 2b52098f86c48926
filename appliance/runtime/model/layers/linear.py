"""Linear layers that each load their own shard: column- and row-parallel, with merged parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from appliance.kernels.ops import Activation, Ops
from appliance.runtime.model.build import Build
from appliance.runtime.model.quant.scheme import Shard, Source


@dataclass(frozen=True, slots=True)
class Part:
    """One checkpoint linear inside a merged one: its name, and the rows this rank keeps."""

    name: str
    first: int
    count: int


class ColumnLinear(nn.Module):
    """Several linears on the same input as one matmul; each rank holds some rows of each."""

    def __init__(self, build: Build, ins: int, parts: list[Part], bias: bool) -> None:
        super().__init__()
        outs = sum(p.count for p in parts)
        self.weight = build.scheme([p.name for p in parts], outs, ins)
        self.bias: nn.Parameter | None = None
        if bias:
            empty = torch.zeros(outs, dtype=build.dtype, device=build.device)
            self.bias = nn.Parameter(empty, requires_grad=False)
        at = 0
        for part in parts:
            shard = Shard(slice(part.first, part.first + part.count), None, at)
            for suffix in self.weight.suffixes:
                build.place(f"{part.name}.{suffix}", partial(self._load, suffix, shard))
            if self.bias is not None:
                build.place(f"{part.name}.bias", partial(self._load_bias, shard))
            at += part.count

    def _load(self, suffix: str, shard: Shard, source: Source) -> None:
        self.weight.load(suffix, source, shard)

    def _load_bias(self, shard: Shard, source: Source) -> None:
        assert self.bias is not None
        part = source.read(shard.rows, None)
        self.bias[shard.at : shard.at + part.shape[0]].copy_(part)

    def forward(self, x_TI: Activation) -> Tensor:
        out: Tensor = self.weight(x_TI, self.bias)
        return out

    def gated(self, x_TI: Activation, ops: Ops) -> Tensor:
        """silu(left half) * right half of what comes out."""
        return self.weight.gated(x_TI, self.bias, ops)


class RowLinear(nn.Module):
    """Each rank holds some columns; the ranks' results are summed. The bias is added once."""

    def __init__(self, build: Build, name: str, ins: int, outs: int, bias: bool) -> None:
        super().__init__()
        self._comm = build.comm
        count = build.mesh.share(ins, name)
        self.weight = build.scheme([name], outs, count)
        self.bias: nn.Parameter | None = None
        first = build.mesh.rank * count
        shard = Shard(slice(0, outs), slice(first, first + count), 0)
        for suffix in self.weight.suffixes:
            build.place(f"{name}.{suffix}", partial(self._load, suffix, shard))
        if bias:
            empty = torch.zeros(outs, dtype=build.dtype, device=build.device)
            self.bias = nn.Parameter(empty, requires_grad=False)
            build.place(f"{name}.bias", self._load_bias)
        self._adds_bias = build.mesh.rank == 0

    def _load(self, suffix: str, shard: Shard, source: Source) -> None:
        self.weight.load(suffix, source, shard)

    def _load_bias(self, source: Source) -> None:
        assert self.bias is not None
        self.bias.copy_(source.read(slice(0, self.bias.shape[0]), None))

    def forward(self, x_TI: Activation) -> Tensor:
        return self._comm.all_reduce(self.weight(x_TI, self.bias if self._adds_bias else None))
