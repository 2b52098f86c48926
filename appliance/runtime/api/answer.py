"""The answer to one HTTP request on its way: the frontend puts deltas in, one task takes them out.

What came while the task was busy (one engine message, or all that came while the socket was behind)
leaves as one delta for each choice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from appliance.errors import RequestError
from appliance.runtime.wire.text import TextDelta
from appliance.status import RequestRow


class CallerGone(Exception):
    """The client closed the connection."""


class Answer:
    """choices: how many sequences belong to the answer. takes_aborts: one that somebody aborts is
    an end like another, with what has come so far; elsewhere it is an error."""

    def __init__(self, choices: int, takes_aborts: bool = False) -> None:
        self.open = choices
        self.takes_aborts = takes_aborts
        """Sequences that have not finished."""
        self.ended: list[RequestRow] = []
        """Those that have, whatever ended them, as they were at their end."""
        self._fresh: list[tuple[int, TextDelta]] = []
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, choice: int, delta: TextDelta) -> None:
        self._fresh.append((choice, delta))
        self._wake()

    def fail(self, error: Exception) -> None:
        """Nothing more will come. What was put before is still taken first."""
        if self._failure is None:
            self._failure = error
            self._wake()

    async def take(self) -> list[tuple[int, TextDelta]]:
        """At least one delta, at most one for each choice. Raises what `fail` was given."""
        while not self._fresh:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if isinstance(self._failure, CallerGone):
            raise self._failure
        fresh, self._fresh = self._fresh, []
        if len(fresh) > 1:
            fresh = _merged(fresh)
        for _, delta in fresh:
            if delta.finish == "error" or (delta.finish == "abort" and not self.takes_aborts):
                raise ended_by_engine(delta)
            if delta.finish:
                self.open -= 1
        return fresh

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def ended_by_engine(delta: TextDelta) -> RequestError:
    if delta.finish == "abort":
        return RequestError(
            delta.error or "the engine ended this request; send it again.",
            status=503,
            type="server_error",
            code="aborted",
            retry_after_s=1.0,
        )
    if delta.code:
        return RequestError(delta.error, code=delta.code)
    return RequestError(
        delta.error or "the engine could not go on with this request.",
        status=500,
        type="server_error",
        code="engine_error",
    )


def _merged(fresh: list[tuple[int, TextDelta]]) -> list[tuple[int, TextDelta]]:
    by_choice: dict[int, list[TextDelta]] = {}
    for choice, delta in fresh:
        by_choice.setdefault(choice, []).append(delta)
    return [(c, d[0] if len(d) == 1 else join(d)) for c, d in by_choice.items()]


def join(deltas: Sequence[TextDelta]) -> TextDelta:
    """One delta that says what these say in turn."""
    first, last = deltas[0], deltas[-1]
    return TextDelta(
        rid=first.rid,
        text="".join([d.text for d in deltas]),
        tokens=sum(d.tokens for d in deltas),
        ids=tuple(i for d in deltas for i in d.ids),
        finish=last.finish,
        matched=last.matched,
        cached=max(d.cached for d in deltas),
        logprobs=tuple(p for d in deltas for p in d.logprobs),
        prompt_logprobs=next((d.prompt_logprobs for d in deltas if d.prompt_logprobs), ()),
        error=last.error,
        code=last.code,
        reasoning="".join([d.reasoning for d in deltas]),
        calls=tuple(c for d in deltas for c in d.calls),
        reasoning_tokens=sum(d.reasoning_tokens for d in deltas),
    )
