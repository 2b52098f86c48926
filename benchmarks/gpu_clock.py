"""How long work on a GPU takes, by its own clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

_WARM, _TIMES = 4, 20


def captured(work: Callable[[], object], passes: int = 1) -> Callable[[], object]:
    """A CUDA graph of `work` so many times over, ready to be replayed."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())  # what the work reads may still be in making
    with torch.cuda.stream(beside):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(passes):
            work()
    return graph.replay


def microseconds(work: Callable[[], object], parts: int = 1) -> float:
    """Median of several runs, for each of the parts that `work` has."""
    times = []
    for _ in range(_WARM + _TIMES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) * 1e3 / parts)
    return statistics.median(times[_WARM:])
