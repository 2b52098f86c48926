"""Bodies of the routes that give scores: SGLang's words, vLLM's, and Cohere's or Jina's."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from appliance.errors import RequestError
from appliance.runtime.api.schema import MAX_SEQUENCES, TokenId, read_inputs
from appliance.runtime.api.unsupported import OfVectors
from appliance.runtime.wire.text import Pair

MAX_LABELS = 1024

Texts = str | list[str]
Ids = tuple[int, ...]


class ClassifyRequest(OfVectors, kw_only=True):
    """vLLM's has input and asks for probabilities; SGLang's has text or input_ids, and asks for
    what the head says.

    use_activation, activation: False for the same of vLLM's.
    """

    model: str | None = None
    input: str | list[Any] | None = None
    text: Texts | None = None
    input_ids: list[Any] | None = None
    rid: str | list[str] | None = None
    use_activation: bool | None = None
    activation: bool | None = None

    def given(self) -> tuple[list[str | Ids], str, bool]:
        """What to classify, the field that holds it, and whether it came as a list."""
        fields = {"input": self.input, "text": self.text, "input_ids": self.input_ids}
        named = [name for name, value in fields.items() if value is not None]
        if len(named) != 1:
            raise RequestError("give one of input, text and input_ids.", param="input")
        value: Any = fields[named[0]]
        listed = isinstance(value, list) and bool(value) and not isinstance(value[0], int)
        return read_inputs(value, named[0]), named[0], listed

    @property
    def plain(self) -> bool:
        """Scores are wanted as the head gives them."""
        return self.use_activation is False or self.activation is False


class ScoreRequest(OfVectors, kw_only=True):
    """SGLang's has query and items; vLLM's two texts, or one and several, under three names."""

    model: str | None = None
    query: str | list[TokenId] | None = None
    items: str | list[Any] | None = None
    label_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_LABELS)] | None = None
    apply_softmax: bool | None = None
    item_first: bool | None = None
    temperature: Annotated[float, Meta(gt=0.0, le=100.0)] | None = None
    return_token_logprobs: bool | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    use_activation: bool | None = None
    activation: bool | None = None

    def compared(self) -> tuple[list[Pair], str] | None:
        """The pairs of vLLM's form and the field that holds the second texts; None for SGLang's."""
        pairs = (
            (self.text_1, "text_1", self.text_2, "text_2"),
            (self.queries, "queries", self.documents, "documents"),
            (self.data_1, "data_1", self.data_2, "data_2"),
        )
        for one, name, other, other_name in pairs:
            if one is None and other is None:
                continue
            if one is None or other is None:
                raise RequestError(f"{name} and {other_name} belong together.", param=name)
            return _pairs(one, name, other, other_name), other_name
        return None

    def prompts(self) -> list[str | Ids]:
        """Query and item joined, for each item."""
        if self.query is None or self.items is None:
            raise RequestError(
                "give query and items, or text_1 and text_2.",
                param="query" if self.query is None else "items",
            )
        items = read_inputs(self.items, "items")
        out: list[str | Ids] = []
        for item in items:
            if isinstance(self.query, str) and isinstance(item, str):
                out.append(item + self.query if self.item_first else self.query + item)
            elif not isinstance(self.query, str) and not isinstance(item, str):
                query = tuple(self.query)
                out.append(item + query if self.item_first else query + item)
            else:
                raise RequestError("query and items are all texts or all token ids.", param="items")
        return out

    def labels(self) -> tuple[int, ...]:
        if self.return_token_logprobs:
            raise RequestError(
                "return_token_logprobs is not supported; /generate gives the log probabilities of "
                "a prompt's tokens.",
                code="unsupported_value",
                param="return_token_logprobs",
            )
        if not self.label_token_ids:
            raise RequestError(
                "label_token_ids says which tokens are scored, and is needed here.",
                param="label_token_ids",
            )
        return tuple(self.label_token_ids)


class RerankRequest(OfVectors, kw_only=True):
    """Documents are texts, or objects with a text.

    top_n: 0 is all. instruct: what makes a document a good one, for a model that is asked in words.
    """

    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | dict[str, Any]], Meta(min_length=1, max_length=MAX_SEQUENCES)]
    model: str | None = None
    top_n: Annotated[int, Meta(ge=0)] | None = None
    return_documents: bool | None = None
    instruct: str | None = None

    def texts(self) -> list[str]:
        out: list[str] = []
        for i, document in enumerate(self.documents):
            text = document.get("text") if isinstance(document, dict) else document
            if not isinstance(text, str):
                raise RequestError(
                    f"documents[{i}] is neither a text nor an object with one.", param="documents"
                )
            out.append(text)
        return out


def _pairs(one: Texts, name: str, other: Texts, other_name: str) -> list[Pair]:
    """One with each of several, or each with its own."""
    firsts, seconds = _list(one, name), _list(other, other_name)
    if len(firsts) == 1:
        firsts = firsts * len(seconds)
    if len(firsts) != len(seconds):
        raise RequestError(
            f"{name} has {len(firsts)} texts and {other_name} has {len(seconds)}; give one text, "
            "or as many on both sides.",
            param=other_name,
        )
    return [Pair(a, b) for a, b in zip(firsts, seconds, strict=True)]


def _list(texts: Texts, name: str) -> list[str]:
    given = [texts] if isinstance(texts, str) else texts
    if not 1 <= len(given) <= MAX_SEQUENCES:
        raise RequestError(
            f"{name} holds {len(given)} texts; 1 to {MAX_SEQUENCES} are taken in one request.",
            code="too_many_prompts",
            param=name,
        )
    return given
