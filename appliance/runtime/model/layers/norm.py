"""RMSNorm, alone and with the residual sum before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from appliance.runtime.model.build import Build
from appliance.runtime.model.quant.scheme import Source


class RMSNorm(nn.Module):
    def __init__(self, build: Build, name: str, size: int, eps: float) -> None:
        super().__init__()
        self._ops, self._eps = build.ops, eps
        self.weight = nn.Parameter(
            torch.ones(size, dtype=build.dtype, device=build.device), requires_grad=False
        )
        build.place(f"{name}.weight", self._load)

    def _load(self, source: Source) -> None:
        self.weight.copy_(source.read(slice(0, self.weight.shape[0]), None))

    def forward(self, x_TE: Tensor) -> Tensor:
        return self._ops.rms_norm(x_TE, self.weight, self._eps)

    def add(self, x_TE: Tensor, residual_TE: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of residual + x, residual + x); both inputs may be overwritten."""
        return self._ops.add_rms_norm(x_TE, residual_TE, self.weight, self._eps)
