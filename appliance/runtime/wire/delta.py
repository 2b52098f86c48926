"""The way home: what an engine sends to a frontend."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Literal

from msgspec import Struct

Finish = Literal["", "stop", "length", "abort", "error"]


class Logprob(Struct, frozen=True, array_like=True, gc=False):
    """Of one position: the token taken, its log probability, and the likeliest alternatives.

    Log probabilities are of the model's distribution before temperature and filters.
    """

    id: int
    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class TokenDelta(Struct, frozen=True, array_like=True, gc=False):
    """New tokens of one request. Exactly one delta of a request has `finish` set; it is the last.

    ids: new output ids, the stop id included when one ended the request.
    finish: why it ended. stop: `matched` is the stop id. length: max_tokens or context reached.
    abort: never for the caller's own abort. error: `error` says why, in words for the user.
    code: names an error that the request itself caused; empty when it is a fault of ours.
    cached: prompt tokens that came from the prefix cache (on the first delta, else -1).
    index: number of output tokens before this delta, so that a receiver can drop duplicates.
    prompt_logprobs: on the first delta when asked for; entry 0 (no predecessor) has logprob 0.0.
    """

    rid: int
    index: int
    ids: tuple[int, ...]
    finish: Finish = ""
    matched: int = -1
    cached: int = -1
    logprobs: tuple[Logprob, ...] = ()
    prompt_logprobs: tuple[Logprob, ...] = ()
    error: str = ""
    code: str = ""
    pooled: bytes = b""
    """float32: the vector that was asked for (Sampling.pool), on the last delta."""


class NextTokens(Struct, frozen=True, array_like=True, gc=False):
    """One more token for each of these requests, which go on: what a TokenDelta would say of it,
    in columns. Little-endian: rids int64, indices int32 and ids int32 [requests].

    ValueError for columns of different lengths.
    """

    rids: bytes
    indices: bytes
    ids: bytes

    def __post_init__(self) -> None:
        if len(self.ids) % 4 or not 2 * len(self.ids) == 2 * len(self.indices) == len(self.rids):
            raise ValueError("columns of different lengths")

    def each(self) -> Iterator[TokenDelta]:
        rids = memoryview(self.rids).cast("q").tolist()
        indices, ids = (memoryview(part).cast("i").tolist() for part in (self.indices, self.ids))
        return map(TokenDelta, rids, indices, zip(ids, strict=True))


class SharedPrefix(Struct, frozen=True, array_like=True, gc=False):
    """A beginning of prompts that the prefix cache holds and rows have shared.

    number: its name while it is cached. tokens: its length; own: of these, those behind the
    beginning above it. hits: rows that found it. rows: that use it now.
    """

    number: int
    tokens: int
    own: int
    hits: int
    rows: int


class StepStats(Struct, frozen=True, array_like=True, gc=False):
    """State of an engine after a step; counters only grow during an engine's life."""

    time: float = 0.0
    """time.monotonic() of the engine."""
    generation: int = 0
    steps: int = 0
    running: int = 0
    waiting: int = 0
    used_tokens: int = 0
    """Tokens of the pool held by running requests or the prefix cache's locked part."""
    cached_tokens: int = 0
    """Tokens of the pool held by the prefix cache that nothing locks."""
    total_tokens: int = 0
    prompt_tokens: int = 0
    """Counter: prompt tokens computed."""
    cache_hit_tokens: int = 0
    """Counter: prompt tokens found in the prefix cache."""
    cache_query_tokens: int = 0
    """Counter: prompt tokens looked up."""
    generated_tokens: int = 0
    retractions: int = 0
    evicted_tokens: int = 0
    new_token_ratio: float = 0.0
    schedule_s: float = 0.0
    """Counter: host seconds choosing the next step."""
    wait_s: float = 0.0
    """Counter: host seconds waiting for the device."""
    aborts: int = 0
    inputs_s: float = 0.0
    """Counter: host seconds making inputs of steps; part of launch_s."""
    launch_s: float = 0.0
    """Counter: host seconds queueing steps on the device (on a CPU: computing them)."""
    settle_s: float = 0.0
    """Counter: host seconds making deltas of results and sending them."""
    partial_rid: int = -1
    """The request whose prompt is computed in parts, if any."""
    partial_tokens: int = 0
    """Tokens of that prompt which need no more computing."""
    shared: tuple[SharedPrefix, ...] = ()
    """Beginnings that saved most tokens, the most first."""


class Deltas(Struct, frozen=True, array_like=True, tag="deltas", gc=False):
    """All that one step has for one frontend, no request twice. `stats` at most 10 times a second.

    next: of requests of which there is no more to say than their next token; items: of the others.
    """

    items: tuple[TokenDelta, ...]
    stats: StepStats | None = None
    next: NextTokens | None = None

    def each(self) -> Iterator[TokenDelta]:
        """Of every request."""
        return chain(self.next.each() if self.next is not None else (), self.items)


class Admitted(Struct, frozen=True, array_like=True, tag="admitted", gc=False):
    """These requests got pages in this step (time of the queue's end, for metrics)."""

    rids: tuple[int, ...]
    time: float


class Welcome(Struct, frozen=True, array_like=True, tag="welcome"):
    """An engine's answer to Hello: what it can take."""

    version: int
    generation: int
    """Counts the starts of this engine within the run."""
    context: int
    total_tokens: int
    page_size: int
    max_running: int
    vocab: int
    pid: int


class Leaving(Struct, frozen=True, array_like=True, tag="leaving"):
    """The engine ends because it was asked to: no request is to blame for what follows."""


ToFrontend = Deltas | Admitted | Welcome | Leaving
