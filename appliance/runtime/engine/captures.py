"""CUDA graphs of one body by size: captured, found and replayed; their memory is shared."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

import torch


class Captures:
    """sizes: to capture. body(size) queues the work; prepare(size) is called once before it."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        prepare: Callable[[int], None],
        body: Callable[[int], None],
    ) -> None:
        self._sizes = sorted(sizes)
        self._prepare, self._body = prepare, body
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._memory: Any = None  # handle of the memory pool that all graphs share

    def size_for(self, count: int) -> int | None:
        """The smallest captured size that takes `count`; None when there is none yet."""
        at = bisect.bisect_left(self._sizes, count)
        while at < len(self._sizes):
            if self._sizes[at] in self._graphs:
                return self._sizes[at]
            at += 1
        return None

    def capture_all(self, progress: Callable[[float], None]) -> None:
        """Largest first, so that the smaller ones find their memory in its pool."""
        for done, size in enumerate(reversed(self._sizes)):
            self.capture(size)
            progress((done + 1) / len(self._sizes))

    def capture(self, size: int) -> None:
        """On the current stream, not the default one; the kernels keep its priority."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._prepare(size)
            self._body(size)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph,
            pool=self._memory,
            stream=torch.cuda.current_stream(),
            capture_error_mode="thread_local",
        ):
            self._body(size)
        self._memory = self._memory or graph.pool()
        self._graphs[size] = graph

    def drop(self) -> None:
        """Gives up what was captured at once: its owner, whose methods are the body, is held by
        this and holds it, and is not collected once what is built has been frozen."""
        self._graphs.clear()

    def replay(self, size: int) -> None:
        self._graphs[size].replay()
