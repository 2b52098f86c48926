"""Batch: the device tensors of one step, every field's shape beside it.

T tokens, R rows (prefill rows first), K kv heads of this rank, D head size, P page size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KVPages:
    """One layer's part of the pool: k, v [pages, P, K, D], in the model's dtype or 8-bit floats."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True, slots=True)
class KVScales:
    """One layer's: pages of 8-bit floats times these are K and V. Of no use for wider pages."""

    k: float = 1.0
    v: float = 1.0


UNSCALED = KVScales()


@dataclass(frozen=True, slots=True)
class Shared:
    """Decode rows that begin alike, from the first decode row on: rows[g] of them have their first
    pages[g] pages in common. int32 [groups], on the host."""

    rows: npt.NDArray[np.int32]
    pages: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Batch:
    """What the model reads in one forward pass.

    ids int64 [T], positions int64 [T], kv_rows int64 [T]: page * P + offset of each token's K, V.
    slots int32 [R] on the device; starts, lengths int32 [R] on the host: row r computes positions
      starts[r] .. starts[r] + lengths[r] - 1.
    prefill_rows, prefill_tokens: how many rows and tokens are prefill; the rest are decode rows of
      one token each.
    page_table int32 [slots, columns], on the device.
    padded_rows: > 0 when the pass is a captured graph of that many decode rows.
    """

    ids: Tensor
    positions: Tensor
    kv_rows: Tensor
    slots: Tensor
    starts: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    prefill_rows: int
    prefill_tokens: int
    page_table: Tensor
    page_size: int
    shared: Shared | None = None
    padded_rows: int = 0
    """> 0: a captured pass of that many decode rows."""
    padded_tokens: int = 0
    """> 0: a captured pass of that many prompt tokens."""
