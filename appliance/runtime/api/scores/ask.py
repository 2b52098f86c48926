"""What a model can tell of texts, by what it was made for, and the requests that ask it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from appliance.errors import RequestError
from appliance.runtime.api.frontend import Frontend
from appliance.runtime.wire import vectors
from appliance.runtime.wire.text import AskedSampling, Chat, Gives, Pair, Prompt, TextRequest

_JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)
"""Models trained to rerank by one word were trained on this sentence; others understand it."""
_INSTRUCT = "Given a web search query, retrieve relevant passages that answer the query"
_VERDICTS = ("yes", "no")


class Asking:
    """Makes the requests of one frontend."""

    def __init__(self, frontend: Frontend, model: str) -> None:
        self._frontend, self._model = frontend, model
        self.gives: Gives = frontend.text.gives

    def requests(
        self, prompts: Sequence[Prompt], param: str, sampling: AskedSampling
    ) -> list[TextRequest]:
        """RequestError 503 or 429 when they cannot be taken now."""
        self._frontend.check_open(len(prompts))
        arrival = time.monotonic()
        return [
            TextRequest(
                rids=self._frontend.mint(1),
                prompt=prompt,
                sampling=sampling,
                param=param,
                continues=False,
                arrival=arrival,
            )
            for prompt in prompts
        ]

    def pooled(self, prompts: Sequence[Prompt], param: str) -> list[TextRequest]:
        """For what the model was made to tell of each prompt."""
        return self.requests(
            prompts, param, AskedSampling(max_tokens=0, temperature=0.0, pool=True)
        )

    def labels(
        self, prompts: Sequence[Prompt], param: str, ids: tuple[int, ...], temperature: float = 0.0
    ) -> list[TextRequest]:
        """For the log probabilities of these tokens behind each prompt."""
        asked = AskedSampling(max_tokens=0, temperature=temperature, labels=ids)
        return self.requests(prompts, param, asked)

    def check_classifier(self) -> None:
        if not self.gives.labels:
            raise self.refusal(
                "has no head that tells classes; a …ForSequenceClassification checkpoint has one."
                + (" /v1/score gives the probabilities of tokens." if self.gives.text else "")
            )

    def refusal(self, what: str) -> RequestError:
        return RequestError(f"{self._model} {what}", code="unsupported_for_model", param="model")


class Relevance:
    """How well pairs of texts fit, told by embeddings, by a head of one class, or in a word."""

    def __init__(self, asking: Asking) -> None:
        self._asking, self._gives = asking, asking.gives

    def of_pairs(self, pairs: Sequence[Pair], param: str) -> list[TextRequest]:
        """RequestError for a model that is made neither for embeddings nor for pairs."""
        if self._gives.pooling:
            return self._asking.pooled(_once(pairs), param)
        if len(self._gives.labels) == 1:
            return self._asking.pooled(pairs, param)
        if self._gives.labels:
            raise self._asking.refusal(
                f"tells {len(self._gives.labels)} classes, which make no score of two texts; a "
                "head of one class does. /classify gives the classes."
            )
        raise self._asking.refusal(
            "writes text; a model for embeddings, or one with a head of a single class, compares "
            "two texts. Give query, items and label_token_ids to score tokens, or ask /v1/rerank."
        )

    async def of_documents(
        self, query: str, documents: Sequence[str], instruct: str | None, frontend: Frontend
    ) -> list[TextRequest]:
        """As `of_pairs`; a model that writes is asked for one word about each document."""
        if self._gives.pooling or self._gives.labels or not self._gives.text:
            return self.of_pairs([Pair(query, document) for document in documents], "documents")
        words = [await frontend.text.encode(word, False) for word in _VERDICTS]
        if not all(words) or words[0][0] == words[1][0]:
            raise self._asking.refusal("has no tokens that tell yes from no.")
        chats = [_verdict(query, document, instruct or _INSTRUCT) for document in documents]
        return self._asking.labels(chats, "documents", (words[0][0], words[1][0]))

    def scores(self, pairs: Sequence[Pair], found: Sequence[bytes], plain: bool) -> list[float]:
        """found: the vectors of the requests. plain: as the head gives them."""
        if self._gives.pooling:
            at = {text: vector for text, vector in zip(_once(pairs), found, strict=True)}
            return [vectors.cosine(at[p.first], at[p.second]) for p in pairs]
        if self._gives.labels:
            activation = "none" if plain else self._gives.activation
            return [float(vectors.probabilities(f, activation)[0]) for f in found]
        return [float(vectors.shares(f, softmax=True)[0]) for f in found]


def _once(pairs: Sequence[Pair]) -> list[str]:
    """Every text of the pairs, without repeats: each needs one embedding."""
    return list(dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second)))


def _verdict(query: str, document: str, instruct: str) -> Chat:
    asked = f"<Instruct>: {instruct}\n<Query>: {query}\n<Document>: {document}"
    return Chat(
        messages=[{"role": "system", "content": _JUDGE}, {"role": "user", "content": asked}],
        variables={"enable_thinking": False, "thinking": False},
    )
