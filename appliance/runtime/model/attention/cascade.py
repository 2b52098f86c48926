"""Attention in two parts, in plain torch: keys that several rows share are read once, the own ones
of each row by themselves, and the two states become one. The meaning of the fast form.

B rows, K kv heads, G query heads of one kv head, D head size, L keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from appliance.runtime.model.batch import Batch

Take = Callable[[Tensor], Tensor]
"""Pool rows [n] -> keys or values [n, K, D]."""


@dataclass(frozen=True, slots=True)
class State:
    """What rows made of some keys: out [B, K, G, D]; total [B, K, G], log of the sum of exponents,
    both float32. No keys: a total of minus infinity."""

    out: Tensor
    total: Tensor


def attend(q_BKGD: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> State:
    """k, v [B or 1, K, L, D]; seen bool [B, L]: which keys count; None: all."""
    scores = torch.matmul(q_BKGD.float(), k.float().transpose(2, 3)) * q_BKGD.shape[-1] ** -0.5
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None, None, :], -torch.inf)
    total = scores.logsumexp(-1)
    weights = torch.exp(scores - total[..., None])
    return State(torch.matmul(weights, v.float()), total)


def merge(a: State, b: State) -> State:
    """The state of the keys of both."""
    total = torch.logaddexp(a.total, b.total)
    share_a = torch.exp(a.total - total)[..., None]
    share_b = torch.exp(b.total - total)[..., None]
    return State(a.out * share_a + b.out * share_b, total)


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows begin .. end - 1 of the decode rows, and the pool rows of what they share."""

    begin: int
    end: int
    keys: Tensor


class CascadePlan:
    """Where the decode rows of a batch with `shared` find their keys."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        assert batch.shared is not None
        size, n = batch.page_size, batch.prefill_rows
        lengths = (batch.starts + batch.lengths)[n:].astype(np.int64)
        skipped = np.zeros(len(lengths), dtype=np.int64)
        table = batch.page_table[batch.slots[n:].long()].long()
        offsets = torch.arange(size, device=device)
        self._groups: list[_Group] = []
        at = 0
        for rows, pages in zip(
            batch.shared.rows.tolist(), batch.shared.pages.tolist(), strict=True
        ):
            keys = (table[at, :pages, None] * size + offsets).flatten()
            self._groups.append(_Group(at, at + rows, keys))
            skipped[at : at + rows] = pages
            at += rows
        own = lengths - skipped * size
        self._longest = int(own.max())
        self._own = _own_rows(table, skipped, self._longest, size, device)
        counts = torch.from_numpy(own).to(device)
        self._seen = torch.arange(self._longest, device=device)[None, :] < counts[:, None]

    def run(self, q_BHD: Tensor, keys_of: Take, values_of: Take) -> Tensor:
        rows, heads, size = q_BHD.shape
        shape = (rows, self._longest)
        k = keys_of(self._own.flatten()).unflatten(0, shape).transpose(1, 2)
        v = values_of(self._own.flatten()).unflatten(0, shape).transpose(1, 2)
        q = q_BHD.view(rows, k.shape[1], heads // k.shape[1], size)
        own = attend(q, k, v, self._seen)
        out = own.out
        for group in self._groups:
            part = slice(group.begin, group.end)
            common = attend(
                q[part],
                keys_of(group.keys).transpose(0, 1)[None],
                values_of(group.keys).transpose(0, 1)[None],
                None,
            )
            out[part] = merge(common, State(own.out[part], own.total[part])).out
        return out.to(q_BHD.dtype).reshape(rows, heads, size)


def _own_rows(
    table: Tensor, skipped: npt.NDArray[np.int64], longest: int, size: int, device: torch.device
) -> Tensor:
    """Pool rows [B, longest] of the keys after the skipped pages; past a row's end, anything."""
    columns = torch.arange(-(-longest // size), device=device)[None, :]
    columns = columns + torch.from_numpy(skipped).to(device)[:, None]
    pages = table.gather(1, columns.clamp(max=table.shape[1] - 1))
    offsets = torch.arange(size, device=device)
    return (pages[:, :, None] * size + offsets).flatten(1)[:, :longest]
