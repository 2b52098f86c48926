"""Rows under a grammar: which wait for theirs, the masks of a step, the tokens forced ahead."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from appliance.runtime.schedule.cache.cache import Cache
from appliance.runtime.schedule.draft import Draft
from appliance.runtime.schedule.grammar.jump import LEAST
from appliance.runtime.schedule.grammar.matcher import Fault
from appliance.runtime.schedule.grammar.shelf import Order, Shelf
from appliance.runtime.schedule.request import Request, State
from appliance.runtime.schedule.running import Running
from appliance.runtime.wire.delta import TokenDelta
from appliance.runtime.wire.step import Masks, Step

Int32s = npt.NDArray[np.int32]

FORCED_MOST = 512
"""Forced tokens that one step computes."""


class Waiting:
    """Requests whose grammar is being compiled; they are not in the queue yet."""

    def __init__(self, shelf: Shelf | None, vocab: int, jumps: bool) -> None:
        self._shelf, self._vocab, self._jumps = shelf, vocab, jumps
        self._orders: dict[int, tuple[Request, Order]] = {}

    def __len__(self) -> int:
        return len(self._orders)

    def requests(self) -> list[Request]:
        return [request for request, _ in self._orders.values()]

    def add(self, request: Request) -> TokenDelta | None:
        """The only delta of a request for which no grammar can be had."""
        assert request.wire.grammar is not None
        if self._shelf is None:
            return _refusal(request, "grammar_unsupported", "This engine takes no grammars.")
        self._orders[request.rid] = request, self._shelf.ask(request.wire.grammar)
        return None

    def drop(self, rid: int) -> bool:
        return self._orders.pop(rid, None) is not None

    def ready(self) -> tuple[list[Request], list[tuple[Request, TokenDelta]]]:
        """Requests that have their constraint now, and those that end with its refusal."""
        begin: list[Request] = []
        end: list[tuple[Request, TokenDelta]] = []
        for request, order in [v for v in self._orders.values() if v[1].done]:
            del self._orders[request.rid]
            if order.refused is not None:
                text = f"The grammar was refused: {order.refused}"
                end.append((request, _refusal(request, order.refused.code, text)))
                continue
            self._constrain(request, order)
            constraint = request.constraint
            if constraint is not None and request.output and constraint.finished:
                end.append((request, TokenDelta(request.rid, len(request.output), (), "stop")))
            else:
                begin.append(request)
        return begin, end

    def _constrain(self, request: Request, order: Order) -> None:
        """What a request had written before it came here is told to its grammar."""
        assert request.wire.grammar is not None
        # A log probability belongs to a token that was computed; a forced one is not.
        jumps = self._jumps and request.sampling.logprobs < 0
        constraint = order.constraint(
            request.wire.grammar, request.sampling.stop_ids, self._vocab, jumps
        )
        for index, token in enumerate(request.output):
            constraint.accept(index, token)
        request.constraint = constraint


def masks_of(running: Running, step: Step) -> tuple[Masks | None, list[tuple[Request, Fault]]]:
    """Allowed tokens of the rows of `step` under a grammar, and requests that cannot go on."""
    rows: list[int] = []
    bits: list[npt.NDArray[np.uint32]] = []
    faults: list[tuple[Request, Fault]] = []
    for row in np.flatnonzero(running.constrained[step.slots] & step.samples).tolist():
        request = running.requests[int(step.slots[row])]
        if request is None or request.constraint is None or request.state is not State.DECODE:
            continue
        try:
            found = request.constraint.bits(int(step.outputs[row]))
        except Fault as fault:
            faults.append((request, fault))
            continue
        if found is not None:
            rows.append(row)
            bits.append(found)
    if not rows:
        return None, faults
    return Masks(np.array(rows, dtype=np.int32), np.stack(bits)), faults


def add_forced(running: Running, cache: Cache, slots: Int32s, draft: Draft) -> None:
    """Rows of `slots` whose next tokens are forced compute them in one pass, as far as there are
    pages; the others decode them one by one."""
    left = FORCED_MOST
    for slot in slots[running.constrained[slots]].tolist():
        request = running.requests[slot]
        assert request is not None
        if request.constraint is None or request.lease is None:
            continue
        start = int(running.position[slot])
        index = start - len(request.prompt)
        most = min(left, int(running.end[slot]) - start)
        ids = request.constraint.forced(index)[: max(0, most)]
        if len(ids) < LEAST:
            continue
        end = start + len(ids)
        held = len(request.lease.pages)
        wanted = cache.pages_of(end) - held
        if wanted > cache.available:
            continue
        if wanted > 0:
            pages = cache.take(wanted)
            request.lease.pages += pages.tolist()
            draft.add_run(slot, held, pages)
        draft.add_forced(request, start, ids)
        running.stand(slot, end, len(request.lease.pages) * cache.page_size)
        left -= len(ids)


def _refusal(request: Request, code: str, message: str) -> TokenDelta:
    return TokenDelta(request.rid, len(request.output), (), "error", error=message, code=code)
