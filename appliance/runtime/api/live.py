"""One sequence that has not ended, as its frontend holds it, and what others see of it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Literal

from appliance.runtime.api.answer import Answer
from appliance.runtime.api.callers import Caller
from appliance.runtime.api.engines import EnginePeer
from appliance.runtime.wire.request import TokenRequest
from appliance.runtime.wire.text import TextStream
from appliance.status import ClientRow, RequestRow

CLIENTS_SHOWN = 50


class Live:
    """One sequence that has not ended. Times are of time.monotonic()."""

    __slots__ = (
        "admitted_at", "answer", "cached", "caller", "choice", "client", "crashes", "engine",
        "first_at", "in_flight", "last_at", "name", "output", "prompt_tokens", "request", "stream",
    )  # fmt: skip

    def __init__(
        self,
        request: TokenRequest,
        stream: TextStream,
        engine: EnginePeer,
        answer: Answer,
        choice: int,
        name: str,
        client: str,
        caller: Caller,
    ) -> None:
        self.request, self.stream, self.engine = request, stream, engine
        self.answer, self.choice, self.name = answer, choice, name
        self.client, self.caller = caller.name or client, caller
        self.prompt_tokens = len(request.prompt) // 4
        self.output = array("i")
        self.cached = 0
        self.crashes = 0
        self.in_flight = False
        self.admitted_at: float | None = None
        self.first_at: float | None = None
        self.last_at = request.arrival


def request_row(live: Live, now: float) -> RequestRow:
    arrival, tokens, stats = live.request.arrival, len(live.output), live.engine.stats
    phase: Literal["queued", "prefill", "decode"] = "queued"
    prefilled = None
    if live.engine.connected and live.in_flight:
        phase = "decode" if tokens else "prefill"
        if phase == "prefill" and stats is not None and stats.partial_rid == live.request.rid:
            prefilled = stats.partial_tokens
    return RequestRow(
        id=live.name,
        phase=phase,
        prompt_tokens=live.prompt_tokens,
        cached_tokens=live.cached,
        output_tokens=tokens,
        max_tokens=live.request.sampling.max_tokens,
        age_s=now - arrival,
        queue_s=None if live.admitted_at is None else max(0.0, live.admitted_at - arrival),
        ttft_s=None if live.first_at is None else live.first_at - arrival,
        tok_s=_speed(live),
        client=live.client,
        prefilled_tokens=prefilled,
    )


def _speed(live: Live) -> float | None:
    """Tokens a second since the first; None before there are two."""
    if live.first_at is None or len(live.output) < 2 or live.last_at <= live.first_at:
        return None
    return (len(live.output) - 1) / (live.last_at - live.first_at)


def client_rows(lives: Iterable[Live], now: float) -> list[ClientRow]:
    """One for each client, those with most live requests first."""
    of: dict[str, list[Live]] = {}
    for live in lives:
        of.setdefault(live.client, []).append(live)
    rows = [
        ClientRow(
            client=client,
            live=len(theirs),
            queued=sum(not live.in_flight for live in theirs),
            prompt_tokens=sum(live.prompt_tokens for live in theirs),
            output_tokens=sum(len(live.output) for live in theirs),
            tok_s=sum(_speed(live) or 0.0 for live in theirs),
            oldest_s=now - min(live.request.arrival for live in theirs),
        )
        for client, theirs in of.items()
    ]
    rows.sort(key=lambda row: row.live, reverse=True)
    return rows[:CLIENTS_SHOWN]
