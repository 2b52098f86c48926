"""Gather: while requests wait for room, it gathers until a prefill of a good size can use it.

A pass over a few hundred prompt tokens costs nearly as much as one over a thousand, and every row
that decodes waits for it. Where there is room for all that wait, nothing is held back.
"""

from __future__ import annotations

ENOUGH = 2048
"""Prompt tokens worth a pass of their own; as many as those of the rows that have gone count."""
WAITED_SHARE = 8
"""A request is held back by at most this part of the steps that it has waited already."""
MOST = 16
"""Steps of holding back, at most."""
TRY_AGAIN = 8
"""Steps after which it is tried again although no row has gone."""


class Gather:
    """Steps are counted by `turn`. short: the last round of admission ended for want of room."""

    def __init__(self, enough: int) -> None:
        self.turn = 0
        self.short = False
        self._enough = min(ENOUGH, enough)
        self._began = self._rows = self._tokens = 0

    def next_turn(self) -> None:
        self.turn += 1

    def begin(self) -> None:
        """A round of admission begins; it ends with `short` set or not."""
        self.short = False
        self._began, self._rows, self._tokens = self.turn, 0, 0

    def anew(self) -> None:
        """What waits has changed: worth a round at once."""
        self.short = False

    def gone(self, tokens: int) -> None:
        """A row has gone; tokens: those that were prefilled for it."""
        self._rows += 1
        self._tokens += tokens

    def due(self, waiting: int, since: int) -> bool:
        """Whether a round is due. since: the turn at which the first that waits began to."""
        held = self.turn - self._began
        if not self.short:
            return True
        if not self._rows:
            return held > TRY_AGAIN
        if self._rows >= waiting or self._tokens >= self._enough:
            return True
        return held >= min(MOST, (self.turn - since) // WAITED_SHARE)
