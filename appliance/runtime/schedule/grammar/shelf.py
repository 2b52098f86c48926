"""Shelf: compiled grammars, least recently used out first, and the thread that makes them.

The scheduler's loop only asks and looks; reading the vocabulary, loading the libraries and
compiling happen in a thread, and the compiling in its box.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from appliance.errors import ApplianceError
from appliance.runtime.schedule.grammar.box import Box
from appliance.runtime.schedule.grammar.compile import (
    MAX_SOURCE,
    Compiled,
    Libraries,
    Matching,
    Refused,
    Words,
)
from appliance.runtime.schedule.grammar.jump import Jump
from appliance.runtime.schedule.grammar.matcher import Constraint
from appliance.runtime.wire.request import Grammar

WARM_AFTER_S = 1.0
"""Seconds without a grammar before the libraries are loaded for the first: what else an engine
does when it has just begun comes first."""
_WARM = (
    Grammar("json_object"),
    Grammar("json_schema", '{"type": "string", "maxLength": 2}'),
)
"""One for each library."""

CAPACITY = 256 << 20
"""Bytes of compiled grammars kept."""

log = logging.getLogger(__name__)


class Order:
    """A grammar asked for. Made in one thread and read in another: `done` is set last.

    refused: why there is none. bytes: what it counts for on the shelf.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.done = False
        self.refused: Refused | None = None
        self.bytes = 0
        self._start: Callable[[], Matching] | None = None
        self._jump: Jump | None = None

    def constraint(
        self, grammar: Grammar, stop_ids: Sequence[int], vocab: int, jumps: bool
    ) -> Constraint:
        """A request's own, at the beginning of its output."""
        assert self._start is not None
        jump = self._jump if jumps else None
        return Constraint(grammar, self._start(), stop_ids, vocab, jump)

    def made(self, start: Callable[[], Matching], jump: Jump, size: int) -> None:
        self._start, self._jump, self.bytes = start, jump, size
        self.done = True

    def refuse(self, why: Refused) -> None:
        self.refused, self.bytes = why, 1024
        self.done = True


class Shelf:
    """vocab: ids of the model. words: reads its vocabulary, called once, in the thread."""

    def __init__(
        self,
        vocab: int,
        words: Callable[[], Words],
        box: Callable[[Words, int], Box] = Box,
        capacity: int = CAPACITY,
    ) -> None:
        self._vocab, self._words, self._make_box, self._capacity = vocab, words, box, capacity
        self._orders: OrderedDict[Grammar, Order] = OrderedDict()
        self._asked: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._box: Box | None = None
        self._tools: tuple[Libraries, Box, Jump] | None = None
        self._closing = False

    def ask(self, grammar: Grammar) -> Order:
        """At once; the order is done when its thread has come to it."""
        key = replace(grammar, after=())
        order = self._orders.get(key)
        if order is not None:
            self._orders.move_to_end(key)
            return order
        order = self._orders[key] = Order(key)
        self._make_room()
        size = len(grammar.source.encode())
        if size > MAX_SOURCE:
            order.refuse(
                Refused(
                    f"the grammar has {size:,} bytes; at most {MAX_SOURCE:,} are taken.",
                    "grammar_too_complex",
                )
            )
            return order
        self._asked.put(order)
        self._begin(None)
        return order

    def warm(self, after_s: float = WARM_AFTER_S) -> None:
        """Loads in the thread what the first grammar would wait for, unless one comes before."""
        self._begin(after_s)

    def close(self) -> None:
        """Ends the thread and its box. Orders not yet made stay so."""
        self._closing = True
        if self._box is not None:
            self._box.end()
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join(timeout=5)
        if self._box is not None:
            self._box.close()

    def _make_room(self) -> None:
        held = sum(o.bytes for o in self._orders.values())
        for key in list(self._orders):
            if held <= self._capacity:
                break
            if self._orders[key].done:
                held -= self._orders.pop(key).bytes

    def _begin(self, warm_after_s: float | None) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(warm_after_s,), name="grammar", daemon=True
            )
            self._thread.start()

    def _run(self, warm_after_s: float | None) -> None:
        wait_s = warm_after_s
        while True:
            try:
                order = self._asked.get(timeout=wait_s)
            except queue.Empty:
                self._warm()
                continue
            finally:
                wait_s = None
            if order is None:
                return
            try:
                self._make(order)
            except Refused as e:
                order.refuse(e)
            except ApplianceError as e:
                order.refuse(Refused(f"{e.message} {e.hint}".strip(), "grammar_unsupported"))
            except Exception:
                log.exception("a grammar of kind %s", order.grammar.kind)
                order.refuse(Refused("the grammar could not be compiled."))

    def _warm(self) -> None:
        """What fails here fails again, and is told, when a grammar is asked for."""
        try:
            for grammar in _WARM:
                self._make(Order(grammar))
        except Exception as e:
            if not self._closing:
                log.info("grammars could not be prepared for: %s", e)

    def _make(self, order: Order) -> None:
        if self._closing:
            raise Refused("the engine is shutting down.", "grammar_unsupported")
        libraries, box, jump = self._loaded()
        compiled: Compiled = box.compile(order.grammar)
        order.made(libraries.open(compiled), jump, 2 * len(compiled.form) + 4096)

    def _loaded(self) -> tuple[Libraries, Box, Jump]:
        if self._tools is None:
            words = self._words()
            box = self._box = self._make_box(words, self._vocab)
            if self._closing:
                box.end()
            self._tools = Libraries(words, self._vocab), box, Jump(words)
        return self._tools
