"""StepResult -> deltas: which tokens count, who has ended and why.

Rows whose request ended while the step was in the air give nothing: their token is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.runtime.schedule.ends import RowEnds
from appliance.runtime.schedule.request import Request, State
from appliance.runtime.schedule.running import Running
from appliance.runtime.wire.delta import Finish, Logprob, TokenDelta
from appliance.runtime.wire.step import PromptLogprobs, Step, StepLogprobs, StepResult

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Next:
    """Rows that got one more token and go on: of whom, for whom, the token and its index in the
    output. rids int64, the others int32 [rows]."""

    owners: Int32s
    rids: Int64s
    indices: Int32s
    ids: Int32s

    def __len__(self) -> int:
        return len(self.ids)


class Settled:
    """What a step came to.

    next: of most rows; deltas: of the others. ended: requests that are done, to leave their rows.
    computed: requests with `computed` advanced by this step's prefill. generated: tokens that
    count.
    """

    __slots__ = ("computed", "deltas", "ended", "generated", "next")

    def __init__(self, next: Next) -> None:
        self.next = next
        self.deltas: list[TokenDelta] = []
        self.ended: list[Request] = []
        self.computed: list[Request] = []
        self.generated = len(next)


class Settle:
    def __init__(self, running: Running) -> None:
        self._running = running

    def settle(self, step: Step, result: StepResult) -> Settled:
        """Records the tokens of `step` in its requests. Pages and slots are the caller's work."""
        running, slots = self._running, step.slots
        ends = running.ends.of(slots)
        running.flights[ends.at] -= 1
        if step.beside:
            running.end_beside(slots)
        invalid = set(result.invalid)
        plain = self._plain(step, result, ends, invalid)
        out = Settled(self._write(step, result, ends, plain))
        self._prompt_logprobs(step, result)
        for row in (~plain).nonzero()[0].tolist():
            request = running.requests[int(slots[row])]
            assert request is not None
            if request.state is not State.DONE:
                self._row(request, row, row in invalid, step, result, out)
        return out

    def fail(self, request: Request, message: str, code: str = "") -> TokenDelta:
        """Ends a request with an error."""
        request.finish()
        known = len(request.output)
        return TokenDelta(request.rid, known, (), "error", error=message, code=code)

    def _plain(
        self, step: Step, result: StepResult, ends: RowEnds, invalid: set[int]
    ) -> npt.NDArray[np.bool_]:
        """Rows that still run and only got one more token. bool [rows]."""
        plain: npt.NDArray[np.bool_] = step.outputs < ends.last
        plain &= self._running.decoding[ends.at]
        stops = ends.stops == result.tokens
        if stops.any():
            plain &= ~(stops.any(axis=0) & (step.outputs >= ends.first))
        plain[: step.prefill_rows] = False
        if invalid:
            plain[list(invalid)] = False
        return plain

    def _write(
        self, step: Step, result: StepResult, ends: RowEnds, plain: npt.NDArray[np.bool_]
    ) -> Next:
        """Adds the tokens of these rows to their outputs."""
        at, next = ends.at, Next(ends.owners, ends.rids, step.outputs, result.tokens)
        rows = plain.nonzero()[0]
        if len(rows) < len(plain):
            at = at[rows]
            next = Next(next.owners[rows], next.rids[rows], next.indices[rows], next.ids[rows])
        self._running.tokens.add(at, next.ids)
        return next

    def _row(
        self,
        request: Request,
        row: int,
        invalid: bool,
        step: Step,
        result: StepResult,
        out: Settled,
    ) -> None:
        if invalid:
            request.invalid = True
            out.ended.append(request)
            out.deltas.append(self.fail(request, _not_finite(request)))
            return
        if row < step.prefill_rows and step.starts[row] < len(request.history):
            request.computed = int(step.starts[row]) + int(step.lengths[row])
            out.computed.append(request)
        if not step.samples[row]:
            return
        token, index = int(result.tokens[row]), int(step.outputs[row])
        ids: tuple[int, ...] = ()
        finish: Finish = ""
        matched = -1
        known = len(request.output)
        if request.sampling.max_tokens > index:
            ids = (*_forced(request, index), token)
            request.output.extend(ids)
            out.generated += len(ids)
            if request.stops_at(token, index):
                finish, matched = "stop", token
            elif request.constraint is not None:
                request.constraint.accept(index, token)
                finish = "stop" if request.constraint.finished else ""
        length = len(request.prompt) + len(request.output)
        if not finish and length >= self._running.last_length(request):
            finish = "length"
        out.deltas.append(
            TokenDelta(
                request.rid,
                known,
                ids,
                finish,
                matched,
                request.cached if request.first else -1,
                _logprobs(request, row, token, result.logprobs) if ids else (),
                tuple(request.prompt_logprobs) if request.wants_prompt_logprobs else (),
                pooled=_pooled(row, result) if request.sampling.pool else b"",
            )
        )
        request.first = False
        request.prompt_logprobs = []
        if finish:
            request.finish()
            out.ended.append(request)

    def _prompt_logprobs(self, step: Step, result: StepResult) -> None:
        for part in result.prompt_logprobs or ():
            request = self._running.requests[int(step.slots[part.row])]
            if request is not None and request.wants_prompt_logprobs:
                _gather(request, int(step.starts[part.row]), part)


def _pooled(row: int, result: StepResult) -> bytes:
    return next((state.tobytes() for r, state in result.pooled if r == row), b"")


def _forced(request: Request, index: int) -> tuple[int, ...]:
    """Output tokens before number `index` that were computed in this step without being sampled."""
    known = len(request.output)
    if known == index or request.constraint is None:
        return ()
    return request.constraint.forced(known)[: index - known]


def _gather(request: Request, start: int, part: PromptLogprobs) -> None:
    """Adds the entries of one chunk; the first token of all has no predecessor."""
    if start == 0:
        request.prompt_logprobs = [Logprob(int(request.prompt[0]), 0.0)]
    k = max(0, request.sampling.prompt_logprobs)
    count = min(len(part.taken), len(request.prompt) - start - 1)
    for j in range(count):
        request.prompt_logprobs.append(
            Logprob(
                int(request.prompt[start + 1 + j]),
                float(part.taken[j]),
                tuple(part.top_ids[j, :k].tolist()),
                tuple(part.top_logprobs[j, :k].tolist()),
            )
        )


def _logprobs(
    request: Request, row: int, token: int, found: StepLogprobs | None
) -> tuple[Logprob, ...]:
    k = request.sampling.logprobs
    if k < 0 or found is None:
        return ()
    return (
        Logprob(
            token,
            float(found.taken[row]),
            tuple(found.top_ids[row, :k].tolist()),
            tuple(found.top_logprobs[row, :k].tolist()),
        ),
    )


def _not_finite(request: Request) -> str:
    return (
        f"The model computed values that are not finite after {len(request.prompt)} prompt and "
        f"{len(request.output)} output tokens; this request cannot go on."
    )
