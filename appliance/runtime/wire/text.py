"""Between the HTTP face of a frontend and its text room: what is asked for, and text as it comes.

These stay inside one process, but they are a border: api and text know each other by them only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct

from appliance.runtime.wire.delta import Finish, TokenDelta
from appliance.runtime.wire.request import Grammar, TokenRequest


class Chat(Struct, frozen=True):
    """Messages to be put into a prompt by the model's chat template."""

    messages: list[dict[str, Any]]
    """Each with role and content, as in a chat request."""
    tools: list[dict[str, Any]] | None = None
    """The functions the model may call, as in a chat request."""
    variables: dict[str, Any] = {}
    """Further variables the template reads."""
    add_generation_prompt: bool = True
    """The prompt ends where the assistant begins to speak."""
    continue_final: bool = False
    """The last message is the assistant's and goes on."""


class Infill(Struct, frozen=True):
    """A text with a hole; the answer stands between the two."""

    before: str
    after: str


class Pair(Struct, frozen=True):
    """Two texts to be compared, put together as the tokenizer puts pairs."""

    first: str
    second: str


Prompt = str | tuple[int, ...] | Chat | Infill | Pair


class AskedSampling(Struct, frozen=True):
    """Sampling as the caller gave it. None: the model's own default, else the usual one."""

    max_tokens: int | None = None
    """Most output tokens; None: what the route allows."""
    temperature: float | None = None
    """0 takes the likeliest token; 1 draws from the distribution as it is."""
    top_k: int | None = None
    """Draws from the k likeliest; 0: from all."""
    top_p: float | None = None
    """Draws from the likeliest whose probabilities add up to this."""
    min_p: float | None = None
    """Draws from those that are at least this share as likely as the likeliest."""
    frequency_penalty: float = 0.0
    """Taken off a logit for each time its token was written."""
    presence_penalty: float = 0.0
    """Taken off a logit whose token was written."""
    repetition_penalty: float | None = None
    """Divides the logit of a token of the prompt or the answer, above 0; multiplies it below."""
    seed: int | None = None
    """The same seed draws the same tokens from the same distribution; None: a random one."""
    min_tokens: int = 0
    """No stop id is drawn before so many output tokens."""
    stop_ids: tuple[int, ...] = ()
    """End the answer besides the model's own."""
    ignore_eos: bool = False
    """The model's own stop ids do not end the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(id, what is added to its logit) of each."""
    logprobs: int = -1
    """Log probabilities of output tokens: -1 none; 0 of each token; n also of the n likeliest."""
    prompt_logprobs: int = -1
    """The same for prompt tokens."""
    pool: bool = False
    """The vector that the model is made to give of a prompt, and no tokens."""
    labels: tuple[int, ...] = ()
    """The log probabilities of these as the next token, as such a vector."""


Reasoning = Literal["separate", "hidden", "inline"]


class TextRequest(Struct, frozen=True):
    """One prompt to be continued len(rids) times.

    default_max_tokens: when the caller gave no max_tokens; 0 means all that the context leaves.
    continues: the answer goes on where the prompt's text ends, so a leading space is kept.
    param: the field of the body that holds the prompt, for error messages.
    calls: tool calls are read out of the answer to a Chat. forced: it must be calls of the tools in
    `may_call`, for which the text room makes the grammar.
    parallel_calls: False keeps the first call only.
    truncate: how many tokens of the prompt are kept, the first ones with the special tokens around
    them; -1: as many as the context holds; 0: a prompt too long is refused.
    reasoning: of a Chat whose model thinks aloud: thoughts in their own field, dropped, or left in
    the text.
    """

    rids: tuple[int, ...]
    prompt: Prompt
    sampling: AskedSampling
    param: str = "prompt"
    default_max_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    add_special_tokens: bool = True
    continues: bool = True
    priority: int = 0
    arrival: float = 0.0
    cache_key: str = ""
    calls: Literal["none", "model", "forced"] = "none"
    may_call: tuple[str, ...] = ()
    parallel_calls: bool = True
    reasoning: Reasoning = "inline"
    grammar: Grammar | None = None
    truncate: int = 0


class TextLogprob(Struct, frozen=True, gc=False):
    """Of one token: its text, its bytes, where it starts in the text, and its alternatives.

    A token that is no whole character has the text `bytes:\\xNN…`. logprob is None for the first
    token of a prompt. top: (id, text, bytes, logprob), likeliest first.
    """

    id: int
    text: str
    raw: bytes
    """Its bytes, also where they are no whole character."""
    logprob: float | None
    offset: int = 0
    """Characters of the text before it."""
    top: tuple[tuple[int, str, bytes, float], ...] = ()


class CallDelta(Struct, frozen=True, gc=False):
    """What is new of one tool call of an answer. The first delta of an index has id and name; the
    arguments of all of them, joined, are its JSON text (cut short when the answer was)."""

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""


class TextDelta(Struct, frozen=True, gc=False):
    """What one TokenDelta adds to the answer with this rid.

    text: whole characters, nothing that may still become a stop string or a mark of the model's.
    reasoning: thoughts, and calls: tool calls, when the request asked to have them apart; of one
    delta the reasoning comes before its text, and the text before its calls.
    reasoning_tokens: how many of `tokens` were thoughts.
    tokens: output tokens this delta accounts for; ids: those tokens.
    finish: set on the last delta; matched: the stop id or stop string that ended it.
    cached, code: as in TokenDelta.
    """

    rid: int
    text: str
    tokens: int = 0
    ids: tuple[int, ...] = ()
    finish: Finish = ""
    matched: int | str | None = None
    cached: int = -1
    logprobs: tuple[TextLogprob, ...] = ()
    """Of the tokens of this delta, where they were asked for."""
    prompt_logprobs: tuple[TextLogprob, ...] = ()
    """Of the prompt, on the first delta, where they were asked for."""
    error: str = ""
    """Why it failed, in words for the caller, where finish is error."""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    reasoning_tokens: int = 0
    code: str = ""
    pooled: bytes = b""
    """As in TokenDelta."""


class TextStream(Protocol):
    """One answer on its way: turns its token deltas into text."""

    def feed(self, delta: TokenDelta) -> TextDelta:
        """A delta with `finish` set is the last, also when the token delta did not finish: a stop
        string was met, and the engine must be told to abort."""


class Gives(Struct, frozen=True):
    """What a model tells of a prompt. At most one of `pooling` and `labels` is there; a model
    without either writes text and nothing else.

    pooling: how it makes embeddings; normalizes: of length one. labels: the classes of its head;
    activation: what makes their scores probabilities. text: it writes.
    """

    pooling: str = ""
    normalizes: bool = True
    labels: tuple[str, ...] = ()
    activation: str = "softmax"
    text: bool = True


class TextRoom(Protocol):
    """The text room as the HTTP face sees it. Errors a caller can cause are RequestErrors."""

    async def tokenize(self, request: TextRequest, context: int) -> list[TokenRequest]:
        """One TokenRequest for each rid. context: most tokens of prompt and output together."""

    def stream(self, request: TextRequest, tokens: TokenRequest) -> TextStream:
        """The stream of the answer to one of `tokenize`'s requests."""

    @property
    def gives(self) -> Gives:
        """What the model is made to tell of a prompt."""

    async def encode(self, prompt: Prompt, add_special_tokens: bool) -> list[int]:
        """Ids of a prompt; for /tokenize."""

    async def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Text of ids; for /detokenize and `echo`."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id as the vocabulary writes it; RequestError when one is not in it."""

    def facts(self) -> dict[str, Any]:
        """The tokenizer's own configuration, for /tokenizer_info."""
