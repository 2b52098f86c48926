"""Lengths: how many tokens a request takes yet that may stop by itself, learnt from all that came.

A request that asks for 4,096 tokens takes 300, and who asks for no number at all as many. What they
have in common is how likely a token is the last, by how many came before it: that many stopped in
each bin of ages, of so many tokens lived there, by those that ended and by those that still run. It
is the estimate of largest likelihood where rows are seen in part only (a piecewise exponential
model; Friedman, Annals of Statistics 10, 1982), so that the first rows of a burst, of which the
short ones have ended, do not pass for all.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

_EDGES = np.array([0, *(1 << np.arange(4, 18))], dtype=np.float64)
"""Where the bins begin; the last has no end."""
_WIDTHS = np.diff(_EDGES, append=np.inf)
_BELIEF = 2.0
"""Rows of each bin that are taken to have stopped before any did."""
_BELIEVED = 1024.0
"""Tokens that a row then takes yet on average, or as many as it has where those are more."""
_REMEMBERED = 2000.0
"""Stops after which what was counted weighs half: loads change."""


class Lengths:
    """expected() is of the last refresh()."""

    def __init__(self) -> None:
        self._stopped = np.zeros(len(_EDGES))
        self._lived = np.zeros(len(_EDGES))
        self.refresh(np.zeros(0, dtype=np.int32))

    def ended(self, tokens: int, stopped: bool) -> None:
        """A row that might have stopped by itself is gone after so many tokens; whether it did."""
        self._lived += _lived(np.array([tokens], dtype=np.float64))
        if stopped:
            self._stopped[_bin(tokens)] += 1
            if self._stopped.sum() > _REMEMBERED:
                self._stopped /= 2
                self._lived /= 2

    def refresh(self, running: Int32s) -> None:
        """running: tokens of each row that runs and may stop by itself."""
        lived = self._lived + _lived(running.astype(np.float64))
        believed = np.maximum(_BELIEVED, _EDGES)
        self._rate: Floats = (self._stopped + _BELIEF) / (lived + _BELIEF * believed)
        shrink = np.exp(-self._rate[:-1] * _WIDTHS[:-1])
        # of those that begin: the share that comes so far, and the tokens they took until there
        self._share: Floats = np.cumprod([1.0, *shrink])
        took = self._share[:-1] * (1 - shrink) / self._rate[:-1]
        self._taken: Floats = np.cumsum([0.0, *took])

    def expected(self, tokens: Int32s, most: Int32s) -> Floats:
        """Tokens that rows with `tokens` take yet on average, of at most `most`."""
        share, taken = self._at(tokens)
        if not len(share):
            return share
        _, then = self._at(tokens + most)
        return np.minimum((then - taken) / np.maximum(share, 1e-300), most)

    def _at(self, tokens: Int32s) -> tuple[Floats, Floats]:
        at = _bin(tokens)
        rate, since = self._rate[at], tokens - _EDGES[at]
        shrink = np.exp(-rate * since)
        share = self._share[at]
        return share * shrink, self._taken[at] + share * (1 - shrink) / rate


def _bin(tokens: npt.ArrayLike) -> npt.NDArray[np.intp]:
    return np.searchsorted(_EDGES, tokens, side="right") - 1


def _lived(tokens: Floats) -> Floats:
    """How many of these rows' tokens are in each bin."""
    within = np.clip(tokens[:, None] - _EDGES, 0, _WIDTHS)
    return np.asarray(within.sum(0))
