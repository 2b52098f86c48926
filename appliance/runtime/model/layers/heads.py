"""Heads that tell no tokens: a classifier's scores, and none."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from appliance.runtime.model.build import Build
from appliance.runtime.model.quant.scheme import Source


class ClassHead(nn.Module):
    """weight [classes, hidden], whole on every rank."""

    def __init__(self, build: Build, name: str, classes: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.zeros((classes, hidden), dtype=build.dtype, device=build.device),
            requires_grad=False,
        )
        build.place(f"{name}.weight", self._load)
        build.optional.add("lm_head.weight")

    def _load(self, source: Source) -> None:
        self.weight.copy_(source.read(slice(0, self.weight.shape[0]), None))

    def logits(self, x_SE: Tensor) -> Tensor:
        """[S, hidden] -> [S, classes]"""
        return F.linear(x_SE, self.weight)


class NoHead(nn.Module):
    """Of a checkpoint that has hidden states only."""

    def logits(self, x_SE: Tensor) -> Tensor:
        """[S, hidden] -> [S, 1]: one token to choose from, which nobody is told."""
        return torch.zeros_like(x_SE[:, :1])
