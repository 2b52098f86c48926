"""Outlook: the most pages that the rows will hold at once before the last of them has ended.

Rows end at different times, so they do not stand at their ends together: while k steps pass, a row
that goes on grows by k tokens and one that has ended gives its pages back. Pages only grow between
two ends, so the most is held just before one of them, and it is enough to look there.

A row whose prompt is computed beside these steps begins to grow nobody knows when: it is reckoned
to grow from now on and to end last.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]

_SPARE = 64


class Outlook:
    """tokens: stored now. rest: steps that a row takes yet. common: pages it shares with others,
    which its end does not free. Pages that no row's end frees are `base`.

    Rows are put in order, longest rest first, when it matters: row i ends when `need[i]` pages of
    rows 0 .. i are held, and of those that end last. Where all could stand at their ends at once,
    it does not.
    """

    def __init__(
        self, page_size: int, tokens: Int32s, rest: Int32s, common: Int32s, base: int
    ) -> None:
        self._page = page_size
        self._base = base
        self._tokens, self._rest, self._common = tokens, rest, common
        self._count = len(tokens)
        self._need: Int32s | None = None
        self._worst = 0
        self._added: list[tuple[int, int, int]] = []
        self._last: list[tuple[int, int, int]] = []
        self._all_at_once = base + int((self._pages(tokens + rest) - common).sum())

    def fits(self, tokens: int, rest: int, common: int, total: int, last: bool = False) -> bool:
        """Whether `total` pages are enough at the worst time to come with one more row. last: it is
        one that ends last."""
        if self._all_at_once + self._end(tokens, rest, common) <= total:
            return True
        return self.peak_with(tokens, rest, common, last) <= total

    @property
    def peak(self) -> int:
        """Pages held at the worst time to come."""
        self._ordered()
        return self._base + max(self._worst, self._all_last())

    def peak_with(self, tokens: int, rest: int, common: int, last: bool = False) -> int:
        """The same if one more row were there, its `tokens` stored."""
        need, n = self._ordered(), self._count
        if last:
            each = need[:n] + self._beside(tokens, rest, common, self._rest[:n])
            alone = self._all_last() + self._end(tokens, rest, common)
            return self._base + max(int(each.max(initial=0)), alone)
        at = self._place(rest)
        before = int(need[:at].max(initial=0))
        after = need[at:n] + self._pages(tokens + self._rest[at:n]) - common
        return self._base + max(
            before,
            int(after.max(initial=0)),
            self._at_end(at, tokens, rest, common),
            self._all_last(),
        )

    def add(self, tokens: int, rest: int, common: int, last: bool = False) -> None:
        """One more row."""
        self._all_at_once += self._end(tokens, rest, common)
        if last:
            self._last.append((tokens, rest, common))
            if self._need is not None:
                n = self._count
                self._need[:n] += self._beside(tokens, rest, common, self._rest[:n])
                self._worst = int(self._need[:n].max(initial=0))
            return
        if self._need is None:
            self._added.append((tokens, rest, common))
            return
        n, at = self._count, self._place(rest)
        end = self._at_end(at, tokens, rest, common)
        self._need[at:n] += self._pages(tokens + self._rest[at:n]) - common
        if n == len(self._rest):
            self._tokens, self._rest, self._common, self._need = (
                np.concatenate([part, np.empty(n + _SPARE, dtype=np.int32)])
                for part in (self._tokens, self._rest, self._common, self._need)
            )
        for part, value in (
            (self._tokens, tokens),
            (self._rest, rest),
            (self._common, common),
            (self._need, end),
        ):
            part[at + 1 : n + 1] = part[at:n]
            part[at] = value
        self._count = n + 1
        self._worst = int(self._need[: n + 1].max())

    def _ordered(self) -> Int32s:
        """`need`, made now if it was not yet."""
        if self._need is None:
            added = np.array(self._added, dtype=np.int32).reshape(-1, 3).T
            parts = (self._tokens, self._rest, self._common)
            tokens, rest, common = (np.concatenate(part) for part in zip(parts, added, strict=True))
            order = np.argsort(-rest, kind="stable")
            self._tokens, self._rest, self._common = tokens[order], rest[order], common[order]
            self._count = len(order)
            self._need = self._needs()
            for row in self._last:
                self._need += self._beside(*row, self._rest)
            self._worst = int(self._need.max(initial=0))
        return self._need

    def _end(self, tokens: int, rest: int, common: int) -> int:
        return -(-(tokens + rest) // self._page) - common

    def _place(self, rest: int) -> int:
        """Rows that do not end before one with this rest."""
        return int(np.searchsorted(-self._rest[: self._count], -rest, side="right"))

    def _at_end(self, at: int, tokens: int, rest: int, common: int) -> int:
        """Pages of the first `at` rows, of those that end last and of the new one when it ends."""
        held = self._pages(self._tokens[:at] + rest) - self._common[:at]
        beside = sum(self._end(row[0], min(rest, row[1]), row[2]) for row in self._last)
        return int(held.sum()) + beside + self._end(tokens, rest, common)

    def _beside(self, tokens: int, rest: int, common: int, after: Int32s) -> Int32s:
        """Pages of a row that ends last, so many steps later, int32 as `after`."""
        return self._pages(tokens + np.minimum(after, np.int32(rest))) - np.int32(common)

    def _all_last(self) -> int:
        """Pages of the rows that end last, when no others are left."""
        return sum(self._end(*row) for row in self._last)

    def _pages(self, tokens: Int32s) -> Int32s:
        return (tokens + (self._page - 1)) // self._page

    def _needs(self) -> Int32s:
        """Pages of rows 0 .. i when row i ends, int32 [rows].

        A row's pages after k steps are those of now, one for each page of k, and one more where
        the rest of k goes over the edge of its last page; the latter is counted for every rest.
        """
        n, page = self._count, self._page
        if not n:
            return np.empty(0, dtype=np.int32)
        tokens, rest = self._tokens[:n], self._rest[:n]
        now = np.cumsum((tokens - 1) // page + 1 - self._common[:n])
        over = (tokens - 1) % page
        edges = np.arange(page, 0, -1, dtype=np.int32)
        crossed = np.cumsum(over[:, None] >= edges, axis=0, dtype=np.int32)
        rows = np.arange(n)
        whole: Int32s = now + (rows + 1) * (rest // page) + crossed[rows, rest % page]
        return whole.astype(np.int32)
