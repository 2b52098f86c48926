"""Scheme: how one linear's weight is stored, read and multiplied. One object per linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from appliance.kernels.ops import Activation, Ops, Rounding


class Source(Protocol):
    """A tensor of the checkpoint, read part by part."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, rows: slice, columns: slice | None) -> Tensor:
        """A view or copy on the host of [rows] or [rows, columns]."""

    def whole(self) -> Tensor:
        """All of it: scales."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a checkpoint tensor that this rank keeps, and where it goes.

    rows, columns: of the source; columns None for all. at: first row of the target.
    """

    rows: slice
    columns: slice | None
    at: int


class Finishing(nn.Module):
    """A part of the model that has work to do between its weights' arrival and the first pass."""

    def finish(self) -> None:
        """Called once when everything is loaded."""


class Scheme(Finishing):
    """suffixes: names of the checkpoint tensors of a linear of this scheme, `weight` among them."""

    suffixes: tuple[str, ...] = ("weight",)

    @property
    def rounding(self) -> Rounding | None:
        """How its tokens may come rounded; None: only wide."""
        return None

    def load(self, suffix: str, source: Source, shard: Shard) -> None:
        """Copies a shard of `<linear>.<suffix>` into place."""
        raise NotImplementedError

    def fill(self, std: float) -> None:
        """Random weights, for measurements without a checkpoint."""
        raise NotImplementedError

    def forward(self, x_TI: Activation, bias: Tensor | None) -> Tensor:
        """x W^T + bias: [T, in] -> [T, out of this rank]."""
        raise NotImplementedError

    def gated(self, x_TI: Activation, bias: Tensor | None, ops: Ops) -> Tensor:
        """silu(left half) * right half of what `forward` gives."""
        return ops.silu_and_mul(self.forward(x_TI, bias))
