"""Newest: the tokens that outputs got last, by slot, before anybody asks for them.

Each row gets one a step; to add them one by one would be to fetch the outputs of all rows into the
processor's cache. So they gather in one table and are moved in runs.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Places = npt.NDArray[np.intp]

WIDTH = 32
"""Tokens of one row that gather before they are moved."""


class Newest:
    """Whoever reads an output calls `collect` before."""

    def __init__(self, slots: int) -> None:
        self._tokens = np.zeros((slots, WIDTH), dtype=np.int32)
        self._count = np.zeros(slots, dtype=np.intp)
        self._outputs: list[array[int] | None] = [None] * slots

    def begin(self, slot: int, output: array[int]) -> None:
        """A row takes the slot."""
        self._outputs[slot], self._count[slot] = output, 0

    def end(self, slot: int) -> None:
        self.collect(slot)
        self._outputs[slot] = None

    def add(self, at: Places, tokens: Int32s) -> None:
        """One more of each of these slots, none of which is in there twice."""
        count = self._count[at]
        self._tokens[at, count] = tokens
        count += 1
        self._count[at] = count
        full = count == WIDTH
        if full.any():
            for slot in at[full].tolist():
                self.collect(slot)

    def collect(self, slot: int) -> None:
        """The slot's output is whole, until the next `add`."""
        count, output = int(self._count[slot]), self._outputs[slot]
        if count:
            assert output is not None, "tokens for a slot without a row"
            output.extend(self._tokens[slot, :count].tolist())
            self._count[slot] = 0
