"""The oracle worker: an Executor with a real page pool, whose answers show every wrong page.

The KV of a position is a hash of all tokens up to it (namespace first) and the position; the next
token is a pure function of that hash, the seed and the output index. `truth` computes the same
from the request alone. A stale slot, a page used too early, a lost or doubled token: each gives
another token, or an OracleError at once.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from appliance.runtime.wire.request import Sampling, TokenRequest, ids_from_bytes
from appliance.runtime.wire.step import (
    Masks,
    NewRow,
    PromptLogprobs,
    Step,
    StepLogprobs,
    StepResult,
)

_M = (1 << 61) - 1


class OracleError(AssertionError):
    """The scheduler asked for something that no correct one would."""


def seed_of(namespace: str) -> int:
    value = 7
    for c in namespace.encode():
        value = (value * 1_000_003 + c + 1) % _M
    return value


def fold(state: int, token: int) -> int:
    return (state * 6_364_136_223_846_793_005 + token + 1_442_695_040_888_963_407) % _M


def choose(state: int, seed: int, index: int, vocab: int) -> int:
    return fold(fold(state, seed), index) // 8191 % vocab


def logprob_of(token: int) -> float:
    return -1.0 - token / 1024


def truth(request: TokenRequest, context: int, vocab: int) -> tuple[list[int], str]:
    """All output ids of a request that runs undisturbed from its prompt, and how it ends."""
    sampling = request.sampling
    prompt = ids_from_bytes(request.prompt).tolist()
    state = seed_of(request.cache_key)
    for token in prompt:
        state = fold(state, token)
    output: list[int] = []
    most = min(sampling.max_tokens, context - len(prompt))
    while len(output) < most:
        token = choose(state, sampling.seed, len(output), vocab)
        output.append(token)
        state = fold(state, token)
        if token in sampling.stop_ids and len(output) > sampling.min_tokens:
            return output, "stop"
    return output, "length"


@dataclass
class _Slot:
    rid: int
    sampling: Sampling
    prompt_length: int
    tokens: list[int]
    states: list[int]
    pages: dict[int, int] = field(default_factory=dict)
    computed: int = 0


class OracleFlight:
    def __init__(self, oracle: Oracle, step: Step, writes: dict[int, int]) -> None:
        self.step = step
        self.writes = writes
        self.sampled = False
        self._oracle = oracle
        self.tables: dict[int, dict[int, int]] | None = None
        self.result: StepResult | None = None

    def sample(self, masks: Masks | None) -> None:
        self.sampled = True

    def done(self) -> bool:
        return self._oracle.done(self)

    def wait(self) -> StepResult:
        if not self.sampled:
            raise OracleError("waited for a flight that was never sampled")
        return self._oracle.land(self)


class Oracle:
    """namespaces: rid -> cache_key, which a Step does not carry. poisoned: rids of NaN rows.

    At `launch` the new step is checked against what is in the air. The compute itself is done at
    the latest when a flight is waited for, in order, as on a stream. A step beside others begins
    at any time after the last of those before it, looks up its rows' pages then, and is done at any
    time after that and before the first that must wait for it. early: the chance of either whenever
    the device is asked for anything.
    """

    def __init__(
        self, pages: int, page_size: int, slots: int, vocab: int, namespaces: dict[int, str]
    ) -> None:
        self.page_size, self.vocab, self.total = page_size, vocab, pages
        self.state = np.full((pages + 1, page_size), -1, dtype=np.int64)
        self.position = np.full((pages + 1, page_size), -1, dtype=np.int64)
        self.token = np.full((pages + 1, page_size), -1, dtype=np.int64)
        self.rng = random.Random(pages * 31 + page_size)
        self.early = 0.3
        self.beside_steps = 0
        self.slots: dict[int, _Slot] = {}
        self.max_slots = slots
        self.namespaces = namespaces
        self.poisoned: set[int] = set()
        self.flying: deque[OracleFlight] = deque()
        self._mirror: dict[int, tuple[int, dict[int, int]]] = {}
        self._sampling: dict[int, Sampling] = {}
        self._last_id = 0
        self.shared_steps = 0

    def chore(self, busy: bool) -> Callable[[], None] | None:
        return None

    def launch(self, step: Step) -> OracleFlight:
        self._check_shape(step)
        for slot in step.freed:
            if self._mirror.pop(slot, None) is None:
                raise OracleError(f"slot {slot} freed twice")
        for new in step.new:
            if new.slot in self._mirror:
                raise OracleError(f"slot {new.slot} taken while in use")
            self._mirror[new.slot] = (new.rid, {})
            self._sampling[new.slot] = new.sampling
        places = list(zip(step.page_slots.tolist(), step.page_columns.tolist(), strict=True))
        if len(set(places)) != len(places):
            raise OracleError("a page table's place is written twice in one step, in no order")
        airborne = {page: rid for f in self.flying for page, rid in f.writes.items()}
        for slot, column, page in zip(
            step.page_slots.tolist(),
            step.page_columns.tolist(),
            step.page_ids.tolist(),
            strict=True,
        ):
            if not 1 <= page <= self.total:
                raise OracleError(f"page {page} is not in the pool")
            rid, table = self._mirror[slot]
            if airborne.get(page, rid) != rid:
                raise OracleError(f"page {page} given to {rid} while {airborne[page]} may write it")
            table[column] = page
        self._check_shared(step)
        flight = OracleFlight(self, step, self._writes(step, airborne))
        if step.beside:
            self.beside_steps += 1
            if step.prefill_rows != len(step.slots) or step.shared is not None:
                raise OracleError("a step of decode rows beside others")
            for asked in (self._sampling[slot] for slot in step.slots.tolist()):
                if asked.penalized or asked.pool or asked.prompt_logprobs >= 0:
                    raise OracleError("a step beside others that does not touch its rows alone")
        self._advance_some()
        self.flying.append(flight)
        return flight

    def land(self, flight: OracleFlight) -> StepResult:
        kind = flight.step.beside
        if next(f for f in self.flying if f.step.beside == kind) is not flight:
            raise OracleError("flights landed out of order")
        self._advance_some()
        self.finish(flight)
        self.flying.remove(flight)
        assert flight.result is not None
        return flight.result

    def done(self, flight: OracleFlight) -> bool:
        self._advance_some()
        return flight.result is not None

    def _advance_some(self) -> None:
        """Steps beside others are done early or late."""
        for flight in self.flying:
            ready = all(f.sampled for f in self.flying if f.step.id <= flight.step.id)
            if flight.step.beside and ready and self.rng.random() < self.early:
                further = self.begin if flight.tables is None else self.finish
                further(flight)

    def begin(self, flight: OracleFlight) -> None:
        """Tables change and pages are looked up, after all that the step waits for."""
        if flight.tables is not None:
            return
        step = flight.step
        waits = step.beside or step.prefill_rows or step.shared is not None
        for other in self.flying:
            if other.step.id < step.id and (waits or not other.step.beside):
                self.finish(other)
        for slot in step.freed:
            del self.slots[slot]
        for new in step.new:
            self.slots[new.slot] = self._slot(new)
        for slot, column, page in zip(
            step.page_slots.tolist(),
            step.page_columns.tolist(),
            step.page_ids.tolist(),
            strict=True,
        ):
            known = self.slots[slot]
            begin = column * self.page_size
            own = known.states[begin : begin + self.page_size]
            if column in known.pages and self.state[page].tolist() != own:
                raise OracleError(f"request {known.rid} sent to a page with other KV")
            known.pages[column] = page
        flight.tables = {slot: dict(self.slots[slot].pages) for slot in step.slots.tolist()}

    def finish(self, flight: OracleFlight) -> None:
        if flight.result is not None:
            return
        self.begin(flight)
        if not flight.sampled:
            raise OracleError("a step is waited for by one that was launched before its choice")
        assert flight.tables is not None
        flight.result = self._compute(flight.step, flight.tables)

    def _check_shape(self, step: Step) -> None:
        rows, prefill = len(step.slots), step.prefill_rows
        if not rows or step.id <= self._last_id:
            raise OracleError("an empty step, or one out of order")
        self._last_id = step.id
        for array in (step.starts, step.lengths, step.samples, step.outputs):
            if len(array) != rows:
                raise OracleError("arrays of unequal length")
        for array in (step.slots, step.starts, step.lengths, step.ids, step.outputs, step.page_ids):
            if array.dtype != np.int32:
                raise OracleError(f"an array of {array.dtype}")
        if len(set(step.slots.tolist())) != rows or not (step.slots < self.max_slots).all():
            raise OracleError("a slot twice in a step, or beyond the table")
        if int(step.lengths[:prefill].sum()) != len(step.ids) or (step.lengths < 1).any():
            raise OracleError("lengths and ids disagree")
        if (step.lengths[prefill:] != 1).any() or not step.samples[prefill:].all():
            raise OracleError("a decode row of another form")

    def _check_shared(self, step: Step) -> None:
        """Rows of a group have the same first pages, all before what they compute."""
        if step.shared is None:
            return
        rows, pages = step.shared.rows, step.shared.pages
        if len(rows) != len(pages) or not len(rows) or (rows < 2).any() or (pages < 1).any():
            raise OracleError("groups of another form")
        if int(rows.sum()) > len(step.slots) - step.prefill_rows:
            raise OracleError("more rows in groups than decode")
        self.shared_steps += 1
        at = step.prefill_rows
        for count, shared in zip(rows.tolist(), pages.tolist(), strict=True):
            part = slice(at, at + count)
            at += count
            if (step.starts[part] < shared * self.page_size).any():
                raise OracleError("a row computes what it shares")
            tables = [self._mirror[slot][1] for slot in step.slots[part].tolist()]
            if len({tuple(t[c] for c in range(shared)) for t in tables}) != 1:
                raise OracleError("rows of a group have different pages")

    def _writes(self, step: Step, airborne: dict[int, int]) -> dict[int, int]:
        """Pages this step writes -> rid, none of them shared with another row in the air."""
        writes: dict[int, int] = {}
        for slot, start, length in zip(
            step.slots.tolist(), step.starts.tolist(), step.lengths.tolist(), strict=True
        ):
            rid, table = self._mirror[slot]
            first, last = start // self.page_size, (start + length - 1) // self.page_size
            for column in range(first, last + 1):
                if column not in table:
                    raise OracleError(f"request {rid} has no page for column {column}")
                page = table[column]
                if writes.get(page, rid) != rid or airborne.get(page, rid) != rid:
                    raise OracleError(f"page {page} written by two requests")
                writes[page] = rid
        return writes

    def _slot(self, new: NewRow) -> _Slot:
        tokens = new.history.tolist()
        state = seed_of(self.namespaces[new.rid])
        states: list[int] = []
        for token in tokens:
            state = fold(state, token)
            states.append(state)
        return _Slot(new.rid, new.sampling, new.prompt_length, tokens, states)

    def _compute(self, step: Step, tables: dict[int, dict[int, int]]) -> StepResult:
        rows = len(step.slots)
        tokens = np.full(rows, -1, dtype=np.int32)
        invalid: list[int] = []
        prompt_logprobs: list[PromptLogprobs] = []
        at = 0
        for row in range(rows):
            slot = self.slots[int(step.slots[row])]
            start, length = int(step.starts[row]), int(step.lengths[row])
            if row < step.prefill_rows:
                if step.ids[at : at + length].tolist() != slot.tokens[start : start + length]:
                    raise OracleError(f"request {slot.rid}: wrong ids for {start}")
                at += length
                if slot.sampling.prompt_logprobs >= 0:
                    prompt_logprobs.append(self._prompt_logprobs(slot, row, start, length))
            self._run_row(slot, tables[int(step.slots[row])], start, length)
            if slot.rid in self.poisoned:
                invalid.append(row)
            if step.samples[row]:
                tokens[row] = self._sample(slot, start + length, int(step.outputs[row]))
            elif start + length >= len(slot.tokens):
                raise OracleError(f"request {slot.rid}: a whole prefill that does not sample")
        return StepResult(tokens, self._logprobs(tokens), prompt_logprobs or None, tuple(invalid))

    def _run_row(self, slot: _Slot, held: dict[int, int], start: int, length: int) -> None:
        """Reads and checks every position before `start`, writes those after."""
        end = start + length
        if end > len(slot.tokens):
            raise OracleError(f"request {slot.rid}: position {end - 1} has no token")
        table = np.array([held.get(c, 0) for c in range(-(-end // self.page_size))])
        where = np.arange(end)
        pages, offsets = table[where // self.page_size], where % self.page_size
        expected = np.array(slot.states[:end], dtype=np.int64)
        known = slice(0, start)
        if (self.state[pages[known], offsets[known]] != expected[known]).any():
            raise OracleError(f"request {slot.rid}: wrong KV before position {start}")
        if (self.position[pages[known], offsets[known]] != where[known]).any():
            raise OracleError(f"request {slot.rid}: KV of another position before {start}")
        new = slice(start, end)
        self.state[pages[new], offsets[new]] = expected[new]
        self.position[pages[new], offsets[new]] = where[new]
        self.token[pages[new], offsets[new]] = slot.tokens[start:end]

    def _sample(self, slot: _Slot, length: int, index: int) -> int:
        if index != length - slot.prompt_length or length != len(slot.tokens):
            raise OracleError(f"request {slot.rid}: output {index} sampled at length {length}")
        token = choose(slot.states[-1], slot.sampling.seed, index, self.vocab)
        slot.tokens.append(token)
        slot.states.append(fold(slot.states[-1], token))
        return token

    def _logprobs(self, tokens: np.ndarray) -> StepLogprobs:
        taken = np.array([logprob_of(t) for t in tokens.tolist()], dtype=np.float32)
        top = np.stack([tokens, tokens + 1], axis=1).astype(np.int32)
        return StepLogprobs(taken, top, np.stack([taken, taken - 1], axis=1))

    def _prompt_logprobs(self, slot: _Slot, row: int, start: int, length: int) -> PromptLogprobs:
        following = slot.tokens[start + 1 : start + 1 + length]
        taken = np.array([logprob_of(t) for t in following], dtype=np.float32)
        ids = np.array(following, dtype=np.int32)
        top = np.stack([ids, ids + 1], axis=1).astype(np.int32)
        return PromptLogprobs(row, taken, top, np.stack([taken, taken - 1], axis=1))
