"""Newest: the tokens that outputs got last, by slot, before anybody asks for them.

Each row gets one a step; to add them one by one would be to fetch the outputs of all rows into the
processor's cache. So they gather in one table and are moved in runs, those of a few slots at a
step.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Places = npt.NDArray[np.intp]

WIDTH = 32
"""Tokens of one slot that gather at most: every so many times it is its turn to be emptied."""


class Newest:
    """Whoever reads an output calls `collect` before."""

    def __init__(self, slots: int) -> None:
        self._tokens = np.zeros((slots, WIDTH), dtype=np.int32)
        self._count = np.zeros(slots, dtype=np.intp)
        self._outputs: list[array[int] | None] = [None] * slots
        self._turn = 0

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
        self._count[at] = count + 1
        self._turn = (self._turn + 1) % WIDTH
        self._empty(self._turn)

    def _empty(self, first: int) -> None:
        """Every WIDTH-th slot from this one on."""
        counts = self._count[first::WIDTH]
        gathered, each = self._tokens[first::WIDTH].tobytes(), self._tokens.strides[0]
        for i, count in enumerate(counts.tolist()):
            if count:
                begin = i * each
                self._output(first + i * WIDTH).frombytes(gathered[begin : begin + 4 * count])
        counts[:] = 0

    def collect(self, slot: int) -> None:
        """The slot's output is whole, until the next `add`."""
        count = int(self._count[slot])
        if count:
            self._output(slot).frombytes(self._tokens[slot, :count].tobytes())
            self._count[slot] = 0

    def _output(self, slot: int) -> array[int]:
        output = self._outputs[slot]
        assert output is not None, "tokens for a slot without a row"
        return output
