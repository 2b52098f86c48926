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


class Staging:
    """Host numbers -> device without waiting: pinned buffers used in turn, each with an event.

    A buffer is written again only when the copy that left it is done: those of a step's choice of
    tokens leave after its pass, and the next step must not wait for that.
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
        if self.cuda:
            self._pinned = [
                torch.empty(capacity, dtype=torch.int32, pin_memory=True)
                for _ in range(self._BUFFERS)
            ]
            self._left = [torch.cuda.Event() for _ in range(self._BUFFERS)]

    def send(
        self,
        arrays: Sequence[Words],
        into: Tensor | None = None,
    ) -> list[Tensor]:
        """Int32 (or float32) arrays -> views of one device tensor, `into` if given, in order."""
        if not self.cuda:
            sent = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
            if into is not None:
                torch.cat(sent, out=into[: sum(len(s) for s in sent)])
            return sent
        size = sum(len(a) for a in arrays)
        if size > self._capacity:
            return self._send_large(arrays, size, into)
        turn = self._turn
        self._turn = (turn + 1) % self._BUFFERS
        self._left[turn].synchronize()
        sent = self._copy(arrays, size, self._pinned[turn], into)
        self._left[turn].record()
        return sent

    def _send_large(self, arrays: Sequence[Words], size: int, into: Tensor | None) -> list[Tensor]:
        """Through pinned memory of its own, which torch keeps until the copy is done."""
        return self._copy(arrays, size, torch.empty(size, dtype=torch.int32, pin_memory=True), into)

    def _copy(
        self,
        arrays: Sequence[Words],
        size: int,
        pinned: Tensor,
        into: Tensor | None,
    ) -> list[Tensor]:
        view, at = pinned.numpy(), 0
        for array in arrays:
            view[at : at + len(array)] = array.view(np.int32)
            at += len(array)
        target = torch.empty(size, dtype=torch.int32, device=self._device) if into is None else into
        target[:size].copy_(pinned[:size], non_blocking=True)
        out, begin = [], 0
        for array in arrays:
            part = target[begin : begin + len(array)]
            out.append(part.view(torch.float32) if array.dtype == np.float32 else part)
            begin += len(array)
        return out


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
    table = np.zeros(2 * size, dtype=np.int32)
    table[:rows] = step.slots
    table[rows:size] = spare
    table[size : size + rows] = step.starts
    indptr = np.zeros(size + 1, dtype=np.int32)
    np.cumsum(table[size:] // page_size + 1, out=indptr[1:])
    return table, indptr


def last_tokens(step: Step) -> npt.NDArray[np.int64]:
    """Index in the batch of the last token of each row that samples."""
    ends = np.cumsum(step.lengths, dtype=np.int64) - 1
    return ends[step.samples]
