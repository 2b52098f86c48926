"""Backend: attention over pages as three functions; `reference.py` says what they mean."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from appliance.kernels.ops import Turns
from appliance.runtime.model.batch import UNSCALED, Batch, KVPages, KVScales

Int32s = npt.NDArray[np.int32]

PREFILL_ROWS = 64
"""Most rows of a captured prefill, decode rows among them."""


class Backend(Protocol):
    @property
    def apart(self) -> bool:
        """Whether decode rows and a prefill may be computed at the same time, on two streams."""

    def plan(self, batch: Batch) -> None:
        """Prepares for `run` on every layer of this batch. Host work only, no synchronization."""

    def run(
        self, q_THD: Tensor, pages: KVPages, window: int, scales: KVScales = UNSCALED
    ) -> Tensor:
        """softmax(q k^T / sqrt(D)) v over the keys of each token's sequence up to itself.

        q [T, H, D] -> [T, H, D]. window: keys seen, the token's own included; 0: all. What decode
        rows share (batch.shared) is read once by layers without a window.
        """

    @property
    def turns_rows(self) -> int:
        """Rows of a captured decode pass up to which `run_unturned` serves all layers; 0: none."""

    def run_unturned(
        self, qkv: Tensor, turns: Turns, pages: KVPages, window: int, scales: KVScales = UNSCALED
    ) -> Tensor | None:
        """What Ops.rope_store and then `run` give of qkv, and do to the pages, in one kernel; None,
        and nothing done, where there is none for such a pass."""

    def graph_inputs(self, rows: int) -> RowTables:
        """Device tables that a captured pass over `rows` decode rows reads; same ones each call."""

    def plan_graph(self, rows: int, indptr: Int32s) -> None:
        """Prepares the next replay (or capture). indptr int32 [rows + 1]: pages before each row."""

    def leave_room(self, room: bool) -> None:
        """Whether decode passes from now on leave multiprocessors to a prefill beside them. Queued
        on the current stream."""

    def plan_prefill_graph(
        self, tokens: int, slots: Tensor, page_table: Tensor, ends: Int32s, lengths: Int32s
    ) -> None:
        """Prepares the next replay (or capture) of a captured prefill of `tokens` tokens.

        Row r computes the last lengths[r] of ends[r] positions of slot slots[r]; at most
        PREFILL_ROWS rows. The first plan of a size must be for exactly `tokens` tokens.
        """


class RowTables:
    """The rows' page lists: indptr int32 [rows + 1], last_len int32 [rows], indices int32 [n]."""

    __slots__ = ("indices", "indptr", "last_len")

    def __init__(self, indptr: Tensor, last_len: Tensor, indices: Tensor) -> None:
        self.indptr, self.last_len, self.indices = indptr, last_len, indices
