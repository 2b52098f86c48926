"""Gated MLP: down(silu(gate x) * up x)."""

from __future__ import annotations

from torch import Tensor, nn

from appliance.kernels.ops import Activation
from appliance.runtime.model.build import Build
from appliance.runtime.model.layers.linear import ColumnLinear, Part, RowLinear


class GatedMLP(nn.Module):
    def __init__(self, build: Build, name: str, hidden: int, inner: int, bias: bool) -> None:
        super().__init__()
        self._ops = build.ops
        count = build.mesh.share(inner, "the MLP's width")
        first = build.mesh.rank * count
        parts = [Part(f"{name}.{p}", first, count) for p in ("gate_proj", "up_proj")]
        self.gate_up = ColumnLinear(build, hidden, parts, bias)
        self.down = RowLinear(build, f"{name}.down_proj", inner, hidden, bias)

        self._rounding = build.rounding(self.down.weight)

    def forward(self, x_TE: Activation) -> Tensor:
        mixed: Activation
        if self._rounding is None:
            mixed = self.gate_up.gated(x_TE, self._ops)
        else:
            mixed = self._ops.rounded_silu_and_mul(self.gate_up(x_TE), self._rounding)
        out: Tensor = self.down(mixed)
        return out
