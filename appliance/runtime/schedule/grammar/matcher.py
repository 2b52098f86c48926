"""Constraint: one request's grammar on its way through the output; masks, ends, forced tokens.

It is ahead of what was emitted by the tokens that it has forced; all else it learns when a step
settles.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from appliance.runtime.schedule.grammar.compile import Matching
from appliance.runtime.schedule.grammar.jump import LEAST, Jump
from appliance.runtime.wire.request import Grammar

Uint32s = npt.NDArray[np.uint32]

T = TypeVar("T")

log = logging.getLogger(__name__)

STEP_S = 0.005
"""Thread seconds a token may cost in the long run."""
CREDIT_S = 0.25
"""Thread seconds a request may be behind that before it ends."""


class Fault(Exception):
    """The request cannot go on under its grammar. code: for the caller."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Constraint:
    """jump: None to force nothing. stop_ids: those of the request; vocab: ids of the model."""

    def __init__(
        self,
        grammar: Grammar,
        matching: Matching,
        stop_ids: Sequence[int],
        vocab: int,
        jump: Jump | None,
    ) -> None:
        self._matching, self._jump = matching, jump
        self._after = frozenset(grammar.after)
        self._vocab = vocab
        self._stop_ids = frozenset(stop_ids)
        self._ends = np.array([i for i in stop_ids if i < vocab], dtype=np.int64)
        self._accepted = self._settled = 0
        """Output tokens that are known, forced ones too; and those of them that have settled."""
        self._begun = not grammar.after
        self._last = -1
        self._forced: dict[int, int] = {}
        """Output number -> token; the last that settled may still have to be computed."""
        self._owed = 0.0
        self._fault: Fault | None = None
        self._bits: Uint32s | None = None

    @property
    def finished(self) -> bool:
        """Nothing but an end may follow."""
        if not self._begun or self._fault is not None or self._accepted > self._settled:
            return False
        return self._is_complete() and self._fault is None and not self._allowed().any()

    def accept(self, index: int, token: int) -> None:
        """Output token number `index` has settled. A stop id that ends the request is not told."""
        for fed in range(self._settled - 1, index):
            self._forced.pop(fed, None)
        self._settled = index + 1
        if index < self._accepted:
            return
        self._accepted = index + 1
        self._last = token
        if not self._begun:
            self._begun = token in self._after
            return
        if self._fault is None:
            self._take(token)

    def bits(self, index: int) -> Uint32s | None:
        """Ids that may be output number `index`, uint32 [ceil(vocab / 32)]; None: any.

        All tokens before it have been accepted. Fault when there can be none.
        """
        self._raise_fault()
        if not self._begun:
            return None
        if self._accepted == index:
            self._look_ahead(index)
        if index in self._forced:
            self._raise_fault()
            return self._only(self._forced[index])
        bits = self._allowed()
        if self._is_complete():
            bits = bits.copy()
            self._set(bits, self._ends)
        self._raise_fault()
        if not bits.any():
            raise Fault("grammar_dead_end", "No token of this model can go on in the grammar.")
        if self._owed > CREDIT_S:
            raise _too_slow()
        return bits

    def forced(self, index: int) -> tuple[int, ...]:
        """Output tokens from number `index` on that are settled or forced already."""
        found: list[int] = []
        while index + len(found) in self._forced:
            found.append(self._forced[index + len(found)])
        return tuple(found)

    def _look_ahead(self, index: int) -> None:
        if self._jump is None:
            return
        text = self._ask(self._matching.forced, b"")
        ids = self._jump.tokens(self._last, text) if text else ()
        stops = [at for at, id in enumerate(ids) if id in self._stop_ids]
        ids = ids[: stops[0]] if stops else ids
        if len(ids) < LEAST:
            return
        self._forced |= {index + at: id for at, id in enumerate(ids)}
        for token in ids:
            self._take(token)
        self._accepted = index + len(ids)
        self._last = ids[-1]

    def _take(self, token: int) -> None:
        self._bits = None
        taken = self._ask(lambda: self._matching.accept(token), False)
        self._owed = max(0.0, self._owed - STEP_S)
        if not taken and self._fault is None:
            self._fault = _given_up(self._ask(self._matching.fault, ""), token)

    def _is_complete(self) -> bool:
        return self._ask(self._matching.is_complete, False)

    def _allowed(self) -> Uint32s:
        """The library's bits, without those of ids that are not the model's."""
        if self._bits is None:
            bits = np.zeros((self._vocab + 32) // 32, dtype=np.int32)
            self._ask(lambda: self._matching.fill(bits), None)
            fault = self._ask(self._matching.fault, "")
            if fault:
                self._fault = _given_up(fault, -1)
            self._bits = bits.view(np.uint32)
            self._bits[self._vocab // 32] &= np.uint32((1 << (self._vocab % 32)) - 1)
            self._bits = self._bits[: (self._vocab + 31) // 32]
        return self._bits

    def _ask(self, what: Callable[[], T], otherwise: T) -> T:
        """What a library says, on the request's account; its failure is this request's alone."""
        begin = time.thread_time()
        try:
            return what()
        except Exception:
            log.exception("a grammar's library failed")
            self._fault = Fault("grammar_failed", "The grammar could not be followed further.")
            return otherwise
        finally:
            self._owed += time.thread_time() - begin

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _only(self, token: int) -> Uint32s:
        bits = np.zeros((self._vocab + 31) // 32, dtype=np.uint32)
        self._set(bits, np.array([token], dtype=np.int64))
        return bits

    def _set(self, bits: Uint32s, ids: npt.NDArray[np.int64]) -> None:
        np.bitwise_or.at(bits, ids >> 5, (1 << (ids & 31)).astype(np.uint32))


def _too_slow() -> Fault:
    return Fault(
        "grammar_too_slow",
        f"The grammar takes more than {1000 * STEP_S:g} ms a token; an ambiguous rule such as "
        "`s ::= s s` is the usual cause.",
    )


def _given_up(fault: str, token: int) -> Fault:
    if fault:
        return Fault("grammar_too_slow", f"The grammar is too complex at this place: {fault}")
    return Fault("grammar_dead_end", f"The grammar does not go on with token {token}.")
