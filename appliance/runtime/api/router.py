"""Which engine takes a request: the one with the fewest tokens to its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Candidate(Protocol):
    @property
    def connected(self) -> bool: ...

    @property
    def live_tokens(self) -> int:
        """Tokens of the prompts and outputs of the requests it has."""


def choose(engines: Sequence[Candidate]) -> int:
    """Index of the engine to send to. One that is away takes requests only when all are: they wait
    for it."""
    return min(
        range(len(engines)),
        key=lambda i: (not engines[i].connected, engines[i].live_tokens, i),
    )
