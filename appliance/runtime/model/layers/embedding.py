"""Vocabulary-parallel embedding and head: each rank holds some tokens' rows."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from appliance.kernels.cpu_linear import PackedLinear, pack
from appliance.runtime.model.build import Build
from appliance.runtime.model.quant.scheme import Finishing, Source

_MOST_TWICE = 256 << 20
"""Bytes of a table that both uses may hold in a form of its own."""


class VocabTable(Finishing):
    """weight [ceil(vocab / tp), hidden]; rows past the vocabulary are zero. use: which of `embed`
    and `logits` will be called."""

    def __init__(
        self,
        build: Build,
        name: str,
        vocab: int,
        hidden: int,
        use: Literal["embed", "logits", "both"],
    ) -> None:
        super().__init__()
        self._use = use
        self._packed: PackedLinear | None = None
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

    def finish(self) -> None:
        if self._use == "logits" or (self._use == "both" and self.weight.nbytes <= _MOST_TWICE):
            self._packed = pack(self.weight)
        if self._use == "logits" and self._packed is not None:
            self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)

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
        own = F.linear(x_SE, self.weight) if self._packed is None else self._packed(x_SE)
        return self._comm.all_gather(own)[:, : self._vocab]
