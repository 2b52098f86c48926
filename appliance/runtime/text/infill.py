"""A text with a hole as a prompt, in the marks that the model's vocabulary has for it."""

from __future__ import annotations

from appliance.errors import RequestError
from appliance.runtime.text.vocabulary import Vocabulary
from appliance.runtime.wire.text import Infill

_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)
"""Before the text that precedes the hole, before the one that follows it, before what fills it."""


class Infilling:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._marks = _find(vocabulary)

    def encode(self, prompt: Infill, add_special_tokens: bool) -> list[int]:
        """The prompt's ids. RequestError when the vocabulary has no marks for a hole."""
        if self._marks is None:
            raise RequestError(
                "suffix is not supported: this model has no tokens for filling in the middle. Put "
                "the whole text into prompt.",
                code="unsupported_value",
                param="suffix",
            )
        before, after, middle = self._marks
        encode = self._vocabulary.encode
        return [
            *encode("", add_special_tokens),
            before, *encode(prompt.before, False),
            after, *encode(prompt.after, False),
            middle,
        ]  # fmt: skip


def _find(vocabulary: Vocabulary) -> tuple[int, int, int] | None:
    for texts in _MARKS:
        before, after, middle = (vocabulary.id_of(text) for text in texts)
        if before is not None and after is not None and middle is not None:
            return before, after, middle
    return None
