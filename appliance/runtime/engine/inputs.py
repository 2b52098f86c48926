"""Step -> Batch: what the host knows goes to the device in one copy; the rest is made there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from appliance.runtime.model.batch import Batch, Shared
from appliance.runtime.wire.step import Step

Int32s = npt.NDArray[np.int32]
Words = npt.NDArray[np.int32] | npt.NDArray[np.float32]


class Stopwatch:
    """`with stopwatch:` adds up host seconds until they are taken. span: names them in a trace."""

    def __init__(self, span: Callable[[str], AbstractContextManager[Any]] | None = None) -> None:
        self._span = span
        self._inner: AbstractContextManager[Any] | None = None
        self._began = self._seconds = 0.0

    def __enter__(self) -> None:
        if self._span is not None:
            self._inner = self._span("inputs")
            self._inner.__enter__()
        self._began = time.monotonic()

    def __exit__(self, *error: Any) -> None:
        self._seconds += time.monotonic() - self._began
        if self._inner is not None:
            self._inner.__exit__(*error)
            self._inner = None

    def take(self) -> float:
        """Seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class _Pinned:
    """Host memory that copies leave from. left: that the last of them is done."""

    __slots__ = ("left", "tensor", "words")

    def __init__(self, capacity: int) -> None:
        self.tensor = torch.empty(capacity, dtype=torch.int32, pin_memory=True)
        self.words: Int32s = self.tensor.numpy()
        self.left = torch.cuda.Event()


class Staging:
    """Host numbers -> device without waiting: pinned buffers used in turn, each with an event.

    A buffer is written again only when the copies that left it are done: those of a step's choice
    of tokens leave after its pass, and the next step must not wait for that.
    """

    _BUFFERS = 16
    """A step with many rows and all that changes logits sends some twelve times."""

    def __init__(
        self, device: torch.device, capacity: int, stopwatch: Stopwatch | None = None
    ) -> None:
        """capacity: int32s of the largest copy. stopwatch: runs while inputs are made."""
        self.stopwatch = stopwatch or Stopwatch()
        self._device = device
        self.cuda = device.type == "cuda"
        self._turn = 0
        self._capacity = capacity
        self._pinned = [_Pinned(capacity) for _ in range(self._BUFFERS if self.cuda else 0)]

    def send(self, arrays: Sequence[Words]) -> list[Tensor]:
        """Int32 (or float32) arrays -> views of one new device tensor, in order."""
        if not self.cuda:
            return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
        size, at = sum(len(a) for a in arrays), 0
        pinned = self._next(size)
        for array in arrays:
            pinned.words[at : at + len(array)] = array.view(np.int32)
            at += len(array)
        target = torch.empty(size, dtype=torch.int32, device=self._device)
        target.copy_(pinned.tensor[:size], non_blocking=True)
        pinned.left.record()
        if len(arrays) == 1 and arrays[0].dtype == np.int32:
            return [target]
        out, at = [], 0
        for array in arrays:
            part = target[at : at + len(array)]
            out.append(part.view(torch.float32) if array.dtype == np.float32 else part)
            at += len(array)
        return out

    def fill(self, *pairs: tuple[Int32s, Tensor]) -> None:
        """Each array into a device tensor of its length, all from one buffer."""
        if not self.cuda:
            for array, target in pairs:
                target.copy_(torch.from_numpy(array))
            return
        pinned, at = self._next(sum(len(array) for array, _ in pairs)), 0
        for array, target in pairs:
            end = at + len(array)
            pinned.words[at:end] = array
            target.copy_(pinned.tensor[at:end], non_blocking=True)
            at = end
        pinned.left.record()

    def _next(self, size: int) -> _Pinned:
        """The buffer whose turn it is, once it may be written again; for what none of them holds
        one of its own, which torch keeps until its copies are done."""
        if size > self._capacity:
            return _Pinned(size)
        pinned = self._pinned[self._turn]
        self._turn = (self._turn + 1) % self._BUFFERS
        pinned.left.synchronize()
        return pinned


def batch_of(
    step: Step, page_table: Tensor, last_token: Tensor, page_size: int, staging: Staging
) -> Batch:
    """The Batch of a step with any mix of rows."""
    n = step.prefill_rows
    lengths = step.lengths
    tokens = int(lengths.sum())
    begins = np.cumsum(lengths) - lengths
    positions = np.repeat(step.starts - begins, lengths) + np.arange(tokens, dtype=np.int32)
    owners = np.repeat(step.slots, lengths)
    sent = staging.send([step.slots, positions.astype(np.int32), owners, step.ids])
    slots, on_device, owner_slots, ids = sent
    at = on_device.long()
    page = page_table[owner_slots.long(), at // page_size]
    kv_rows = page.long() * page_size + at % page_size
    ids = ids.long()
    if n < len(step.slots):
        ids = torch.cat((ids, last_token[slots[n:].long()].long()))
    return Batch(
        ids=ids,
        positions=at,
        kv_rows=kv_rows,
        slots=slots,
        starts=step.starts,
        lengths=lengths,
        prefill_rows=n,
        prefill_tokens=int(lengths[:n].sum()),
        page_table=page_table,
        page_size=page_size,
        shared=Shared(step.shared.rows, step.shared.pages) if step.shared is not None else None,
    )


def decode_tables(step: Step, size: int, spare: int, page_size: int) -> tuple[Int32s, Int32s]:
    """Of decode rows, filled up to `size` with the spare slot at position 0: slots and positions
    [2 * size], and the first page of each row in a list of all their pages [size + 1]."""
    rows = len(step.slots)
    table = np.empty(2 * size, dtype=np.int32)
    table[:rows], table[rows:size] = step.slots, spare
    table[size : size + rows], table[size + rows :] = step.starts, 0
    indptr = np.empty(size + 1, dtype=np.int32)
    indptr[0] = 0
    np.add.accumulate(table[size:] // page_size + 1, dtype=np.int32, out=indptr[1:])
    return table, indptr


def last_tokens(step: Step) -> npt.NDArray[np.int64]:
    """Index in the batch of the last token of each row that samples."""
    ends = np.cumsum(step.lengths, dtype=np.int64) - 1
    return ends[step.samples]
