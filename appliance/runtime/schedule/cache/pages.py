"""Which pages of the pool are free. A page in use has one owner: a row, or the prefix tree.

Page 0 is never given out: padding rows of captured graphs write there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]


class Pages:
    """Pages 1 .. total. A page given back last is taken first, so that reuse is seen early."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._stack = np.arange(total, 0, -1, dtype=np.int32)
        self._held = np.zeros(total + 1, dtype=np.bool_)

    def take(self, count: int) -> Int32s:
        """Returns `count` pages, shape [count]. The caller has made sure that they are free."""
        assert 0 <= count <= self.free, f"{count} pages asked of {self.free}"
        self.free -= count
        pages = self._stack[self.free : self.free + count].copy()
        self._held[pages] = True
        return pages

    def give(self, pages: Int32s) -> None:
        """Takes pages back, shape [n]; each was taken and not given since."""
        count = len(pages)
        assert self._held[pages].all(), "a page came back that nobody held"
        self._held[pages] = False
        self._stack[self.free : self.free + count] = pages
        self.free += count

    def free_set(self) -> set[int]:
        return set(self._stack[: self.free].tolist())
