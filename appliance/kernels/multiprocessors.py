"""Multiprocessors of a GPU divided between what reads and what multiplies.

Attention of decode rows reads at copy speed from a third of them, when its kernel has enough on
the way; a library's matmul fills every multiprocessor it is on, so that nothing else begins there
before it ends, and must be told to leave some.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

SPARED = 40 / 132
"""Share of the multiprocessors that a prefill leaves to decode steps beside it (measured on an
H100: prefills of 2,048 and 4,096 tokens and decode steps of 122 rows gain 1.23 together)."""


def spared(device: torch.device) -> int:
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, round(count * SPARED))


class Share:
    """How many multiprocessors a kernel takes, as a number on the device: captured runs too read it
    when they begin."""

    def __init__(self, device: torch.device, whole: int, part: int) -> None:
        """part: of the whole, while others need room."""
        self.taken = torch.full((1,), whole, dtype=torch.int32, device=device)
        self._whole, self._part, self._room = whole, part, False

    def leave_room(self, room: bool) -> None:
        """For runs from now on. Queued on the current stream."""
        if room != self._room:
            self.taken.fill_(self._part if room else self._whole)
            self._room = room


class Room:
    """Library matmuls that leave multiprocessors free. RuntimeError: the library cannot be told."""

    def __init__(self, device: torch.device, count: int) -> None:
        """count: multiprocessors to leave."""
        total = torch.cuda.get_device_properties(device).multi_processor_count
        self._set_target = _cublas()
        self._count, self._target = count, total - count

    @contextmanager
    def left(self) -> Iterator[None]:
        """Matmuls queued within, on the current stream of the calling thread."""
        handle = ctypes.c_void_p(torch.cuda.current_blas_handle())
        self._set_target(handle, ctypes.c_int(self._target))
        torch._C._set_sm_carveout_experimental(self._count)  # of 8-bit matmuls
        try:
            yield
        finally:
            torch._C._set_sm_carveout_experimental(None)
            self._set_target(handle, ctypes.c_int(0))


def _cublas() -> Callable[..., int]:
    name = f"libcublas.so.{(torch.version.cuda or '').split('.')[0]}"
    try:
        found: Callable[..., int] = ctypes.CDLL(name).cublasSetSmCountTarget
    except (OSError, AttributeError) as e:
        raise RuntimeError(f"{name} cannot be told how many multiprocessors to use: {e}") from e
    return found
