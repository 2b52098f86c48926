"""Vocabulary-parallel embedding and head: each rank holds some tokens' rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from appliance.runtime.model.build import Build
from appliance.runtime.model.quant.scheme import Source


class VocabTable(nn.Module):
    """weight [ceil(vocab / tp), hidden]; rows past the vocabulary are zero."""

    def __init__(self, build: Build, name: str, vocab: int, hidden: int) -> None:
        super().__init__()
        self._mesh, self._comm, self._vocab = build.mesh, build.comm, vocab
        self.rows = -(-vocab // build.mesh.tp)
        self.first = build.mesh.rank * self.rows
        self.weight = nn.Parameter(
            torch.zeros((self.rows, hidden), dtype=build.dtype, device=build.device),
            requires_grad=False,
        )
        build.place(f"{name}.weight", self._load)

    def _load(self, source: Source) -> None:
        part = source.read(slice(self.first, min(self.first + self.rows, self._vocab)), None)
        self.weight[: part.shape[0]].copy_(part)

    def embed(self, ids_T: Tensor) -> Tensor:
        """[T] -> [T, hidden]"""
        if self._mesh.tp == 1:
            return F.embedding(ids_T, self.weight)
        local = ids_T - self.first
        mine = (local >= 0) & (local < self.rows)
        out = F.embedding(local.clamp(0, self.rows - 1), self.weight)
        return self._comm.all_reduce(out * mine[:, None])

    def logits(self, x_SE: Tensor) -> Tensor:
        """[S, hidden] -> [S, vocab], whole on every rank."""
        return self._comm.all_gather(F.linear(x_SE, self.weight))[:, : self._vocab]
