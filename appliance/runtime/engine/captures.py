"""CUDA graphs of one body by size: captured, found and replayed; their memory is shared.

A few are captured before a rank serves, the others while it does: `Later`.
"""

from __future__ import annotations

import bisect
import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from appliance.runtime.engine.plain import first_line

ASKED = 8
"""Steps that are padded for want of a size before it is worth holding others up: a capture takes
as long as three short steps, and padding costs each of them a third at most."""

log = logging.getLogger(__name__)


class Captures:
    """sizes: to capture. body(size) queues the work; prepare(size) is called once before it."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        prepare: Callable[[int], None],
        body: Callable[[int], None],
    ) -> None:
        self._sizes = sorted(sizes)
        self._missing = dict.fromkeys(self._sizes, 0)
        self._prepare, self._body = prepare, body
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._memory: Any = None  # handle of the memory pool that all graphs share

    @property
    def missing(self) -> Mapping[int, int]:
        """Sizes that are not captured, ascending, and the steps that would have had them."""
        return self._missing

    @property
    def count(self) -> int:
        """Sizes that are captured."""
        return len(self._graphs)

    def size_for(self, count: int) -> int | None:
        """The smallest captured size that takes `count`; None when there is none yet."""
        at = bisect.bisect_left(self._sizes, count)
        while at < len(self._sizes):
            if self._sizes[at] in self._graphs:
                return self._sizes[at]
            at += 1
        return None

    def capture_first(self, progress: Callable[[float], None], whole: bool = False) -> None:
        """The largest, so that the smaller ones find their memory in its pool, then powers of two,
        so that a step is padded to less than twice its size. whole: all, the largest first."""
        most = self._sizes[-1]
        first = [s for s in reversed(self._sizes) if whole or s == most or s & (s - 1) == 0]
        for done, size in enumerate(first):
            self.capture(size)
            progress((done + 1) / len(first))

    def capture(self, size: int, wait: bool = True) -> None:
        """On the current stream, which is not the default one, behind what is queued there: what a
        step in flight reads is not overwritten before it has been read. wait: until the device has
        nothing to do; else steps in flight go on meanwhile."""
        self._prepare(size)
        self._body(size)  # loads and compiles what it needs, which a capture cannot
        if wait:
            torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with _uncollected():
            try:
                # torch.cuda.graph would wait for the device and give back all that is cached
                graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
                self._body(size)
                graph.capture_end()
            except BaseException:
                self._abandon(graph)
                raise
        self._memory = self._memory or graph.pool()
        self._graphs[size] = graph
        self._missing.pop(size, None)

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """The stream and torch's memory as before a capture that failed."""
        with suppress(RuntimeError):
            graph.capture_end()
        if self._memory is not None:
            with suppress(RuntimeError):  # torch until 2.12 left that to nobody
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._memory)

    def drop(self) -> None:
        """Gives up what was captured at once: its owner, whose methods are the body, is held by
        this and holds it, and is not collected once what is built has been frozen."""
        self._graphs.clear()
        self._missing.clear()

    def replay(self, size: int, count: int) -> None:
        """count: what `size` was found for."""
        self._graphs[size].replay()
        best = self._sizes[bisect.bisect_left(self._sizes, count)]
        if best in self._missing:
            self._missing[best] += 1


class Later:
    """What is not captured yet when a rank begins to serve, one after the other.

    facts: `passes` there are, how many are `captured`, and `capture_failed`: why no more will be.
    """

    def __init__(self, captures: Sequence[Captures], facts: dict[str, Any]) -> None:
        self._captures, self._facts = tuple(captures), facts
        if captures:
            facts["passes"] = sum(c.count + len(c.missing) for c in captures)
            self._tell()

    def next(self, busy: bool) -> tuple[Captures, int] | None:
        """The size that most steps would have had; of equals the first, ascending. busy: none
        unless enough of them would."""
        found, most = None, ASKED - 1 if busy else -1
        for captures in self._captures:
            for size, asked in captures.missing.items():
                if asked > most:
                    found, most = (captures, size), asked
        return found

    def capture(self, captures: Captures, size: int) -> None:
        """On the current stream. One that fails is the last: steps are padded as before."""
        try:
            captures.capture(size, wait=False)
        except Exception as e:
            torch.cuda.synchronize()  # a device that is lost says so again, which ends the engine
            self._captures = ()
            self._facts["capture_failed"] = first_line(e)
            log.warning("no more passes are captured, steps are padded: %s", first_line(e))
            return
        self._tell()
        if not any(c.missing for c in self._captures):
            log.info("all %d passes are captured", self._facts["captured"])

    def _tell(self) -> None:
        self._facts["captured"] = sum(c.count for c in self._captures)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is looked for within: pinned memory that is freed while a stream is captured has
    its event recorded in the graph."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
