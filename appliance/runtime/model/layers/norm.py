"""RMSNorm, alone and with the residual sum before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from appliance.kernels.ops import Activation, Rounding
from appliance.runtime.model.build import Build
from appliance.runtime.model.quant.scheme import Source


class RMSNorm(nn.Module):
    """rounding: how the linear behind it wants its tokens; None: as they are."""

    def __init__(
        self, build: Build, name: str, size: int, eps: float, rounding: Rounding | None = None
    ) -> None:
        super().__init__()
        self._ops, self._eps, self._rounding = build.ops, eps, rounding
        self.weight = nn.Parameter(
            torch.ones(size, dtype=build.dtype, device=build.device), requires_grad=False
        )
        build.place(f"{name}.weight", self._load)

    def _load(self, source: Source) -> None:
        self.weight.copy_(source.read(slice(0, self.weight.shape[0]), None))

    def forward(self, x_TE: Tensor) -> Activation:
        if self._rounding is not None:
            return self._ops.rounded_norm(x_TE, None, self.weight, self._eps, self._rounding)[0]
        return self._ops.rms_norm(x_TE, self.weight, self._eps)

    def add(self, x_TE: Tensor, residual_TE: Tensor) -> tuple[Activation, Tensor]:
        """(norm of residual + x, residual + x); both inputs may be overwritten."""
        if self._rounding is not None:
            return self._ops.rounded_norm(x_TE, residual_TE, self.weight, self._eps, self._rounding)
        return self._ops.add_rms_norm(x_TE, residual_TE, self.weight, self._eps)
