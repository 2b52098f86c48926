"""Executor: launch(step), sample(masks), wait(); chore(). One rank's device.

All device work of a step is queued in order on one stream, that of its lane: page-table changes,
forward pass, choice of tokens, their copy to the host. Nothing waits for the device but `wait`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from appliance.kernels.ops import Ops
from appliance.runtime.engine.captures import Captures, Later
from appliance.runtime.engine.forward import Forward, Passed
from appliance.runtime.engine.lanes import Lane, Lanes
from appliance.runtime.engine.pooling import Pooled, Pooling
from appliance.runtime.engine.sample import logprobs as lp
from appliance.runtime.engine.sample.sampler import INVALID, Sampled, Sampler
from appliance.runtime.engine.sample.state import SamplingState
from appliance.runtime.engine.slots import Slots
from appliance.runtime.model.parallel.comm import Comm
from appliance.runtime.wire.step import Masks, Step, StepResult

Head = Callable[[Tensor], Tensor]


class _Home:
    """Tensors on their way to the host: copies queued on the stream, and when they are done."""

    def __init__(self, tensors: list[Tensor], cuda: bool) -> None:
        self._done: torch.cuda.Event | None = None
        self._host = tensors
        if cuda:
            self._host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for host, tensor in zip(self._host, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def done(self) -> bool:
        return self._done is None or self._done.query()

    def wait(self) -> list[Tensor]:
        if self._done is not None:
            self._done.synchronize()
        return self._host


class StepFlight:
    """One step on its way.

    Everything that `wait` gives out is copied as part of the step: nothing is asked of the device
    later, when the next step is already in its queue.
    """

    def __init__(
        self,
        step: Step,
        executor: DeviceExecutor,
        passed: Passed,
        inputs_s: float,
        lane: Lane,
    ) -> None:
        self.step = step
        self.lane = lane
        self._inputs_s = inputs_s
        self._executor = executor
        hidden, whole, slots = passed
        self._sampled_rows = np.flatnonzero(step.samples)
        # taken now, for the next pass overwrites them
        self._where = slots.long() if len(self._sampled_rows) == len(step.slots) else None
        self._logits = executor.head(hidden) if len(self._sampled_rows) else None
        self._pooled = executor.pooled(step, self._sampled_rows, hidden, whole, self._logits)
        self._prompts = executor.prompt_logprobs(step, whole)
        self._cuda = whole.is_cuda
        self._has_logprobs = False
        self._home: _Home | None = None

    def sample(self, masks: Masks | None) -> None:
        if self._home is None:
            with self.lane.current():
                self._home = _Home(self.choose(masks), self._cuda)
                self._executor.lanes.queued(self.step, self.lane)

    def choose(self, masks: Masks | None) -> list[Tensor]:
        """Queues the choice of tokens; gives what the host wants to know of it."""
        leaving: list[Tensor] = []
        if self._logits is not None:
            sampled = self._executor.choose(
                self.step, self._sampled_rows, self._where, self._logits, masks, self.lane
            )
            self._logits = self._where = None
            leaving.append(sampled.tokens)
            self._has_logprobs = sampled.logprobs is not None
            leaving += sampled.logprobs.fields() if sampled.logprobs is not None else []
        for _, chosen in self._prompts:
            leaving += chosen.fields()
        return [*leaving, self._pooled.values] if self._pooled is not None else leaving

    def done(self) -> bool:
        return self._home is not None and self._home.done()

    def wait(self) -> StepResult:
        assert self._home is not None, "a flight is sampled before it is waited for"
        arrived = self._home.wait()
        tokens = np.full(len(self.step.slots), -1, dtype=np.int32)
        logprobs = None
        if len(self._sampled_rows):
            tokens[self._sampled_rows] = arrived.pop(0).numpy()
            if self._has_logprobs:
                logprobs = lp.spread(arrived[:3], len(tokens), self._sampled_rows)
                arrived = arrived[3:]
        prompts = [
            lp.prompt_row(row, arrived[3 * i : 3 * i + 3])
            for i, (row, _) in enumerate(self._prompts)
        ]
        return StepResult(
            tokens=tokens,
            logprobs=logprobs,
            prompt_logprobs=prompts or None,
            invalid=tuple(int(r) for r in np.flatnonzero(tokens == INVALID)),
            pooled=self._pooled.cut(arrived[-1].numpy()) if self._pooled is not None else (),
            inputs_s=self._inputs_s,
        )


class DeviceExecutor:
    """One rank's Executor. leads: rank 0, which chooses the tokens for all. later: its chores."""

    def __init__(
        self,
        forward: Forward,
        head: Head,
        slots: Slots,
        state: SamplingState,
        ops: Ops,
        lanes: Lanes,
        comm: Comm,
        leads: bool,
        later: Later,
    ) -> None:
        self.head, self.lanes = head, lanes
        self._forward, self._slots, self._state = forward, slots, state
        self._samplers = {
            lane: Sampler(state, ops, lane.staging) for lane in {lanes.main, lanes.side}
        }
        self._pooling = Pooling(state)
        self._comm, self._leads, self._later = comm, leads, later
        self._cuda = slots.page_table.is_cuda

    @torch.inference_mode()
    def launch(self, step: Step) -> StepFlight:
        crowded = self.lanes.crowded
        with self.lanes.run(step, self._forward.has_prefill(step)) as lane:
            stopwatch = lane.staging.stopwatch
            with stopwatch:
                for slot in step.freed:
                    self._state.drop(slot)
                for new in step.new:
                    self._state.take(new)
                self._slots.apply(step, lane.staging)
            passed = self._forward.run(step, lane.staging, crowded)
            return StepFlight(step, self, passed, stopwatch.take(), lane)

    def chore(self, busy: bool) -> Callable[[], None] | None:
        """A pass to capture, as if it were a step: behind all that was launched, and all that will
        be is behind it."""
        found = self._later.next(busy)
        return None if found is None else partial(self._capture, *found)

    @torch.inference_mode()
    def _capture(self, captures: Captures, size: int) -> None:
        with self.lanes.behind_all():
            self._later.capture(captures, size)

    def close(self) -> None:
        """Leaves the other ranks; no step may follow."""
        self._forward.drop_graphs()
        if self._cuda:
            torch.cuda.synchronize()
        self._comm.close()

    def follow(self, step: Step) -> None:
        """A rank other than 0: the same pass, with the tokens that rank 0 chooses."""
        flight = self.launch(step)
        with flight.lane.current():
            flight.choose(None)
            self.lanes.queued(step, flight.lane)

    @torch.inference_mode()
    def choose(
        self,
        step: Step,
        rows: np.ndarray,
        where: Tensor | None,
        logits_SV: Tensor,
        masks: Masks | None,
        lane: Lane,
    ) -> Sampled:
        """Rank 0 samples; the others take its tokens. Every rank keeps them as next inputs.

        rows: those that sample. where int64 [S]: their slots on the device; None: not there yet.
        """
        slots, outputs = step.slots[rows], step.outputs[rows]
        if self._leads:
            sampler = self._samplers[lane]
            sampled = sampler.sample(logits_SV, slots, outputs, self._of_sampled(masks, rows))
        else:
            empty = torch.empty(len(rows), dtype=torch.int64, device=logits_SV.device)
            sampled = Sampled(empty, None)
        self._comm.broadcast(sampled.tokens)
        if where is None:
            where = lane.staging.send([slots])[0].long()
        self._slots.last_token.index_copy_(0, where, sampled.tokens.clamp(min=0).to(torch.int32))
        return sampled

    def _of_sampled(self, masks: Masks | None, rows: np.ndarray) -> Masks | None:
        """Masks by step row -> by row among those that sample."""
        if masks is None:
            return None
        return Masks(np.searchsorted(rows, masks.rows).astype(np.int32), masks.bits)

    def pooled(
        self,
        step: Step,
        sampled_rows: np.ndarray,
        hidden_SE: Tensor,
        hidden_TE: Tensor,
        logits_SV: Tensor | None,
    ) -> Pooled | None:
        """Vectors of the rows that ask for one and whose prompt ends in this step."""
        if not self._state.pools:
            return None
        self._pooling.add(step, hidden_TE)
        if logits_SV is None:
            return None
        return self._pooling.take(step, sampled_rows, hidden_SE, logits_SV)

    def prompt_logprobs(self, step: Step, hidden_TE: Tensor) -> list[tuple[int, lp.Chosen]]:
        """(row, log probabilities) of the prefill rows that ask for those of their prompt."""
        asked = self._state.prompt_logprobs[step.slots[: step.prefill_rows]]
        if not (asked >= 0).any():
            return []
        begins = np.cumsum(step.lengths) - step.lengths
        found = []
        for row in np.flatnonzero(asked >= 0):
            history = self._state.history[int(step.slots[row])]
            first = int(step.starts[row])
            targets = history[first + 1 : first + 1 + int(step.lengths[row])]
            if len(targets):
                at = int(begins[row])
                part = hidden_TE[at : at + len(targets)]
                found.append((int(row), lp.of_prompt(part, targets, int(asked[row]), self.head)))
        return found
