"""Draft: the rows and changes of the next Step while they are gathered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from appliance.runtime.schedule.cohort import Cohort, Places
from appliance.runtime.schedule.request import Request
from appliance.runtime.wire.step import NewRow, SharedRuns, Step

Int32s = npt.NDArray[np.int32]

_NONE: Int32s = np.empty(0, dtype=np.int32)
_NOWHERE: Places = np.empty(0, dtype=np.intp)


class Draft:
    """Prefill rows are added one by one, decode rows all at once.

    plain: no chunk touches more than its own row: no penalties' counts, no vectors, nothing told of
    prompts. decode_at: slots of the decode rows, in whatever order.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.plain = True
        self._slots: list[int] = []
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._samples: list[bool] = []
        self._outputs: list[int] = []
        self._ids: list[Int32s] = []
        self._new: list[NewRow] = []
        self._writes: list[tuple[Int32s, Int32s, Int32s]] = []
        self.decode_at = _NOWHERE
        self._decode = self._decode_starts = self._decode_outputs = _NONE
        self._shared: SharedRuns | None = None

    @property
    def prefill_rows(self) -> int:
        return len(self._slots)

    @property
    def rows(self) -> int:
        return len(self._slots) + len(self._decode)

    @property
    def prefill_slots(self) -> list[int]:
        return self._slots

    def add_new(self, request: Request) -> None:
        self._new.append(
            NewRow(
                slot=request.slot,
                rid=request.rid,
                history=request.history,
                prompt_length=len(request.prompt),
                sampling=request.sampling,
            )
        )

    def add_chunk(self, request: Request, start: int, end: int) -> None:
        """Positions start .. end - 1 of the request's history."""
        last = end == len(request.history)
        self._slots.append(request.slot)
        self._starts.append(start)
        self._lengths.append(end - start)
        self._samples.append(last)
        self._outputs.append(end - len(request.prompt) if last else 0)
        self._ids.append(request.history[start:end])
        self.tokens += end - start
        asked = request.sampling
        self.plain &= not (asked.penalized or asked.pool or asked.prompt_logprobs >= 0)

    def add_forced(self, request: Request, start: int, ids: Sequence[int]) -> None:
        """Output tokens from position `start` on that are known without decoding. The row is told
        anew, so that penalties count them."""
        known = np.array(ids, dtype=np.int32)
        index = start - len(request.prompt)
        self._slots.append(request.slot)
        self._starts.append(start)
        self._lengths.append(len(ids))
        self._samples.append(True)
        self._outputs.append(index + len(ids))
        self._ids.append(known)
        self.tokens += len(ids)
        if request.sampling.penalized:
            output = np.array(request.output[:index], dtype=np.int32)
            self._new.append(
                NewRow(
                    slot=request.slot,
                    rid=request.rid,
                    history=np.concatenate([request.prompt, output, known]),
                    prompt_length=len(request.prompt),
                    sampling=request.sampling,
                )
            )

    def add_pages(self, slots: Int32s, columns: Int32s, pages: Int32s) -> None:
        self._writes.append((slots, columns, pages))

    def add_run(self, slot: int, column: int, pages: Int32s) -> None:
        """`pages` of one slot, from `column` on."""
        count = len(pages)
        columns = np.arange(column, column + count, dtype=np.int32)
        self.add_pages(np.full(count, slot, dtype=np.int32), columns, pages)

    def add_decode(self, rows: Cohort, order: Places | None, shared: SharedRuns | None) -> None:
        """order: in which they stand in the step; None: as they are."""
        parts = rows.slots, rows.starts, rows.outputs
        if order is not None:
            parts = rows.slots[order], rows.starts[order], rows.outputs[order]
        self._decode, self._decode_starts, self._decode_outputs = parts
        self.decode_at, self._shared = rows.at, shared

    def step(self, id: int, freed: list[int], beside: bool = False) -> Step:
        slots, columns, pages = _written(self._writes)
        samples = np.ones(self.rows, dtype=np.bool_)
        if self._samples:
            samples[: len(self._samples)] = self._samples
        return Step(
            id=id,
            slots=_joined(self._slots, self._decode),
            starts=_joined(self._starts, self._decode_starts),
            lengths=_joined(self._lengths, np.ones(len(self._decode), dtype=np.int32)),
            prefill_rows=len(self._slots),
            ids=np.concatenate(self._ids) if self._ids else _NONE,
            samples=samples,
            outputs=_joined(self._outputs, self._decode_outputs),
            page_slots=slots,
            page_columns=columns,
            page_ids=pages,
            new=self._new,
            freed=freed,
            shared=self._shared,
            beside=beside,
        )


def _written(writes: list[tuple[Int32s, Int32s, Int32s]]) -> tuple[Int32s, Int32s, Int32s]:
    if not writes:
        return _NONE, _NONE, _NONE
    if len(writes) == 1:
        return writes[0]
    slots, columns, pages = (np.concatenate(part) for part in zip(*writes, strict=True))
    return slots, columns, pages


def _joined(prefill: list[int], decode: Int32s) -> Int32s:
    if not prefill:
        return decode
    return np.concatenate([np.array(prefill, dtype=np.int32), decode])
