"""Schedule <-> engine. A Step is plain numbers, made without torch; ranks follow it, never plan.

How the two sides stay in step: rows live on the device in slots. A slot's page table, sampling
parameters and last sampled token stay there between steps; a Step carries changes only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from appliance.runtime.wire.request import Sampling

Int32s = npt.NDArray[np.int32]


PENALIZED_MOST = 512
"""Rows with penalties at a time: what each has written is counted in a table of its own."""


class NewRow(Struct):
    """A request takes a slot (first admission, or again after a retraction).

    history: int32 [n], all ids known so far (prompt, then output); needed for penalties.
    prompt_length: how many of `history` are prompt.
    """

    slot: int
    rid: int
    history: Int32s
    prompt_length: int
    sampling: Sampling


class SharedRuns(Struct):
    """Decode rows that begin alike: of the decode rows, the first rows[0] have their first
    pages[0] pages in common, the next rows[1] theirs, and so on; the rest are in no group.

    rows, pages int32 [groups]; rows ≥ 2. The shared pages are full and lie before every start.
    """

    rows: Int32s
    pages: Int32s


class Step(Struct):
    """One forward pass.

    Order of application: `freed`, `new`, page-table writes, then compute.

    slots, starts, lengths: int32 [rows]. Row i computes positions starts[i] ..
      starts[i] + lengths[i] - 1 of its sequence; their K and V go to the pages of its slot.
      Prefill rows first (`prefill_rows` of them), then decode rows, whose lengths are 1.
    ids: int32 [sum of lengths of the prefill rows], their input ids, row after row. A decode row's
      input is the token last sampled for its slot, which only the device may know yet.
    samples: bool [rows]. A prefill row samples only when its chunk ends the known sequence.
      Decode rows always sample.
    outputs: int32 [rows], index in the output of the token a row samples (the random counter).
    page_slots, page_columns, page_ids: int32 [k]: page_table[slot, column] = page.
    freed: slots whose rows have ended; their state may be dropped.
    shared: pages worth reading once for several decode rows.
    beside: it has prefill rows alone and needs not wait for decode steps, nor they for it, but for
      those launched before it.
    """

    id: int
    slots: Int32s
    starts: Int32s
    lengths: Int32s
    prefill_rows: int
    ids: Int32s
    samples: npt.NDArray[np.bool_]
    outputs: Int32s
    page_slots: Int32s
    page_columns: Int32s
    page_ids: Int32s
    new: list[NewRow]
    freed: list[int]
    shared: SharedRuns | None = None
    beside: bool = False


class StepLogprobs(Struct):
    """Log probabilities a step was asked for, by row index.

    Of sampled tokens: taken float32 [rows]; top_ids, top_logprobs [rows, k] for the widest row.
    """

    taken: npt.NDArray[np.float32]
    top_ids: Int32s
    top_logprobs: npt.NDArray[np.float32]


class PromptLogprobs(Struct):
    """Of one prefill row: entry j is for the token at position starts + 1 + j given those before.

    The last entry of a row that samples is absent (that token is not known).
    taken float32 [n]; top_ids, top_logprobs [n, k].
    """

    row: int
    taken: npt.NDArray[np.float32]
    top_ids: Int32s
    top_logprobs: npt.NDArray[np.float32]


class StepResult(Struct):
    """What came of a Step. tokens: int32 [rows]; -1 in rows that do not sample.

    invalid: rows whose logits were not finite; their token means nothing.
    """

    tokens: Int32s
    logprobs: StepLogprobs | None = None
    prompt_logprobs: list[PromptLogprobs] | None = None
    invalid: tuple[int, ...] = ()
    pooled: tuple[tuple[int, npt.NDArray[np.float32]], ...] = ()
    """(row, vector) of rows that asked for one (Sampling.pool)."""
    inputs_s: float = 0.0
    """Host seconds in which the step's inputs were made, of those its launch took."""


class Masks(Struct):
    """Allowed tokens of constrained rows: rows int32 [k], bits uint32 [k, ceil(vocab / 32)]."""

    rows: Int32s
    bits: npt.NDArray[np.uint32]


class Flight(Protocol):
    """A step on its way through the device."""

    step: Step

    def sample(self, masks: Masks | None) -> None:
        """Queues the choice of tokens; no-op when already done."""

    def wait(self) -> StepResult:
        """Blocks until the tokens are on the host."""

    def done(self) -> bool:
        """Whether `wait` would return at once."""


class Executor(Protocol):
    """The engine as the scheduler sees it."""

    def launch(self, step: Step) -> Flight:
        """Queues the forward pass and returns at once (on a GPU)."""

    def chore(self, busy: bool) -> Callable[[], None] | None:
        """A piece of work that could wait until now, for a moment without steps; None when there is
        none. busy: there are steps, so only if it is worth holding them up."""
