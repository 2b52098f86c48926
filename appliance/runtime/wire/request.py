"""The way in: what a frontend sends to an engine.

Token ids cross as little-endian int32 bytes (`ids_to_bytes`, `ids_from_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Ids = npt.NDArray[np.int32]


def ids_to_bytes(ids: Sequence[int] | Ids) -> bytes:
    return np.asarray(ids, dtype="<i4").tobytes()


def ids_from_bytes(data: bytes) -> Ids:
    """A read-only view of shape [n]."""
    return np.frombuffer(data, dtype="<i4")


Pool = Literal["", "last", "mean", "first", "classes", "labels"]
"""A vector of the prompt that is wanted: the hidden state of its last or first token or their mean
after the last norm, the scores of a classifier's head, or the log probabilities of `labels` as the
next token."""


class Sampling(Struct, frozen=True, array_like=True):
    """How one request's next tokens are chosen. Everything is decided: no field is optional.

    temperature 0 is greedy. top_k 0 means all. `seed` is always set (minted by the frontend when
    the user gave none), and the random number of a token depends on (seed, index in the output)
    only, so that a replayed request draws the same numbers.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    """Ids that end the request when sampled; empty under ignore_eos without stop_token_ids."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int = -1
    """-1: none; 0: of the token taken; n: also of the n likeliest."""
    prompt_logprobs: int = -1
    """The same for prompt tokens. Such a request does not match the prefix cache."""
    pool: Pool = ""
    """With max_tokens 0. A request for the mean or the first does not match the prefix cache."""
    labels: tuple[int, ...] = ()
    """Of pool `labels`, whose log probabilities are of the model's distribution at `temperature`
    (at 1 when that is 0)."""

    @property
    def needs_whole_prompt(self) -> bool:
        """Every prompt token must be computed, also those whose pages are known."""
        return self.prompt_logprobs >= 0 or self.pool in ("mean", "first")

    @property
    def penalized(self) -> bool:
        """What was written before changes what comes next."""
        return (
            self.frequency_penalty != 0
            or self.presence_penalty != 0
            or self.repetition_penalty != 1
        )


GrammarKind = Literal["json_schema", "json_object", "regex", "ebnf", "structural_tag"]


class Grammar(Struct, frozen=True, array_like=True):
    """What an output must be.

    kind: what source is: a JSON schema, a regular expression, EBNF with the rule `root`, or a
    structural tag as JSON; empty for json_object. strict: objects hold no properties that the
    schema does not name.
    any_whitespace: JSON may be laid out freely; otherwise it stands in one line, with ", " and
    ": ", and what the schema forces needs no decoding.
    after: the grammar begins behind the first of these ids in the output; empty: at once.
    """

    kind: GrammarKind
    source: str = ""
    strict: bool = True
    any_whitespace: bool = False
    after: tuple[int, ...] = ()


class TokenRequest(Struct, frozen=True, array_like=True, tag="request"):
    """One sequence to continue. An engine must be able to admit one that already has output.

    rid: minted by the frontend, unique in the run. n > 1 is n requests.
    prompt, output: int32 bytes; `output` holds what was already emitted (replay), which counts
    toward max_tokens and penalties and is prefilled like prompt, but is not emitted again.
    priority: higher first. arrival: time.monotonic() of the frontend (same machine).
    cache_key: namespace of the prefix cache; requests with different keys never share pages.
    crashes: engine deaths this request was in flight for.
    """

    rid: int
    prompt: bytes
    sampling: Sampling
    output: bytes = b""
    priority: int = 0
    arrival: float = 0.0
    cache_key: str = ""
    crashes: int = 0
    grammar: Grammar | None = None


class Abort(Struct, frozen=True, array_like=True, tag="abort"):
    """The caller has gone. Unknown or finished ids are ignored. No delta follows."""

    rid: int


class FlushCache(Struct, frozen=True, array_like=True, tag="flush"):
    """Empty the prefix cache of everything no running request uses."""


class Hello(Struct, frozen=True, array_like=True, tag="hello"):
    """First message of a frontend on a new connection."""

    version: int
    frontend: int
    pid: int


ToEngine = TokenRequest | Abort | FlushCache | Hello
