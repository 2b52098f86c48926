"""Request: one sequence and its life, from the queue to its last delta."""

from __future__ import annotations

from array import array
from enum import Enum

import numpy as np
import numpy.typing as npt

from appliance.runtime.schedule.cache.cache import Lease
from appliance.runtime.schedule.grammar.matcher import Constraint
from appliance.runtime.schedule.newest import Newest
from appliance.runtime.wire.delta import Logprob
from appliance.runtime.wire.request import TokenRequest, ids_from_bytes

Int32s = npt.NDArray[np.int32]


class State(Enum):
    """Where a request is. FETCHING waits for pages on their way here, HANDOFF for their leaving."""

    WAITING = "waiting"
    FETCHING = "fetching"
    PREFILL = "prefill"
    HANDOFF = "handoff"
    DECODE = "decode"
    DONE = "done"


MOVES: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.FETCHING, State.PREFILL, State.DONE}),
    State.FETCHING: frozenset({State.WAITING, State.PREFILL, State.DECODE, State.DONE}),
    State.PREFILL: frozenset({State.DECODE, State.HANDOFF, State.WAITING, State.DONE}),
    State.HANDOFF: frozenset({State.DECODE, State.DONE}),
    State.DECODE: frozenset({State.WAITING, State.DONE}),
    State.DONE: frozenset(),
}
"""PREFILL and DECODE -> WAITING is retraction: pages go, the output stays."""


class Request:
    """A request while this engine has it.

    history: ids known when it last began to wait (prompt, then output), int32 [n]; what prefill
    computes. computed: positions of `history` whose keys and values are settled. slot: -1 without a
    row. owner: who is told of it, by a number of the scheduler's caller. admitted: counts
    admissions over all requests; 0 before the first. cached: prompt tokens found in the prefix
    cache at the first admission. prompt_logprobs: entries gathered for the first delta.
    constraint: its grammar, once compiled; it outlives retraction like the output. since: turn of
    the admission at which it last came to the queue.
    """

    __slots__ = (
        "_newest",
        "_output",
        "admitted",
        "cached",
        "computed",
        "constraint",
        "first",
        "history",
        "invalid",
        "lease",
        "owner",
        "prompt",
        "prompt_logprobs",
        "rank",
        "rid",
        "sampling",
        "since",
        "slot",
        "state",
        "stop_ids",
        "wire",
    )

    def __init__(self, wire: TokenRequest, number: int, owner: int = 0) -> None:
        self.wire = wire
        self.owner = owner
        self.rid = wire.rid
        self.sampling = wire.sampling
        self.prompt = ids_from_bytes(wire.prompt)
        self._output = array("i", wire.output)
        self._newest: Newest | None = None
        self.rank = (-wire.priority, wire.arrival, number)
        self.stop_ids = frozenset(wire.sampling.stop_ids)
        self.history = self.known()
        self.state = State.WAITING
        self.slot = -1
        self.lease: Lease | None = None
        self.computed = 0
        self.admitted = 0
        self.since = 0
        self.cached = 0
        self.first = not self.output
        self.invalid = False
        self.constraint: Constraint | None = None
        self.prompt_logprobs: list[Logprob] = []

    @property
    def output(self) -> array[int]:
        """All output ids known, int32, those from before a replay too."""
        if self._newest is not None:
            self._newest.collect(self.slot)
        return self._output

    def known(self) -> Int32s:
        """Prompt and output, int32 [n]."""
        if not self.output:
            return self.prompt
        return np.concatenate([self.prompt, np.array(self.output, dtype=np.int32)])

    @property
    def left(self) -> int:
        """Output tokens it may still take."""
        return self.sampling.max_tokens - len(self.output)

    @property
    def matches(self) -> bool:
        """May share cached pages; not while prompt tokens must be computed for what is told of
        them."""
        return not (self.first and self.sampling.needs_whole_prompt)

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.first and self.sampling.prompt_logprobs >= 0

    def stops_at(self, token: int, index: int) -> bool:
        """Whether `token`, as output number `index`, ends the request."""
        return token in self.stop_ids and index >= self.sampling.min_tokens

    def begin_prefill(self, slot: int, lease: Lease, number: int) -> None:
        self._move(State.PREFILL)
        self.slot, self.lease = slot, lease
        self.computed = lease.matched
        if not self.admitted:
            self.cached = min(lease.matched, len(self.prompt))
        self.admitted = number

    def gathers_in(self, newest: Newest | None) -> None:
        """While it has a slot: where its newest tokens are."""
        self._newest = newest

    def begin_decode(self) -> None:
        self._move(State.DECODE)

    def wait_again(self) -> None:
        """After retraction: the row is gone, the output stays."""
        self._move(State.WAITING)
        self.slot, self.lease, self.computed = -1, None, 0
        self.history = self.known()
        self.prompt_logprobs = []

    def finish(self) -> None:
        self._move(State.DONE)

    def leave_row(self) -> None:
        self.slot, self.lease = -1, None

    def _move(self, to: State) -> None:
        assert to in MOVES[self.state], f"request {self.rid}: {self.state.name} -> {to.name}"
        self.state = to
