"""Cohort: the rows of a decode step, in arrays by row that serve until one of them joins or leaves.

What is known of rows lies in tables by slot (running.py). Looking it all up there would be most of
the work of a step after which nothing has changed but that each row is one token further.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Places = npt.NDArray[np.intp]


@dataclass(slots=True)
class Cohort:
    """slots int32 [rows]; at: the same as an index. starts: the position that a row computes next;
    outputs: the index in its output of the token that it samples then. capacity: positions that
    its pages cover. left: steps until the first row has reached its end.

    Steps hold slots, starts and outputs: none of them is ever written to.
    """

    slots: Int32s
    at: Places
    starts: Int32s
    outputs: Int32s
    capacity: Int32s
    left: int

    def __len__(self) -> int:
        return len(self.slots)

    def crossing(self) -> Places:
        """Rows whose next position lies beyond their pages."""
        return (self.starts >= self.capacity).nonzero()[0]

    def advance(self) -> None:
        """A step with all rows has been launched."""
        self.starts = self.starts + 1
        self.outputs = self.outputs + 1
        self.left -= 1
