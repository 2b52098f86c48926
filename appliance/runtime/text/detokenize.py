"""Token ids -> text as they come: whole characters only, constant work for each token.

However the ids are cut into deltas, the text is the same as of one cut. Bytes that are no UTF-8
become U+FFFD.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Protocol

from appliance.runtime.text.vocabulary import TokenBytes, Vocabulary


class Detokenizer(Protocol):
    def feed(self, ids: Sequence[int]) -> str:
        """The characters that are whole now."""

    def flush(self) -> str:
        """What is left of an unfinished character, as U+FFFD."""


class ByteDetokenizer:
    """For vocabularies whose tokens are bytes: keeps at most three bytes back."""

    def __init__(self, table: TokenBytes, strip_first: bool) -> None:
        self._table = table
        self._rest = b""
        self._strip = strip_first

    def feed(self, ids: Sequence[int]) -> str:
        table = self._table
        data = table[ids[0]] if len(ids) == 1 else b"".join([table[i] for i in ids])
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        if self._rest:
            data = self._rest + data
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._rest = data[used:] if used < len(data) else b""
        return text

    def flush(self) -> str:
        rest, self._rest = self._rest, b""
        return rest.decode("utf-8", "replace")


class WindowDetokenizer:
    """For any other decoder chain: decodes a short window twice and gives what the newest ids add.

    The window moves on when its text ends in a whole character, so its length stays bounded by the
    longest run of tokens that are no whole character.
    """

    def __init__(self, vocabulary: Vocabulary, skip_special_tokens: bool) -> None:
        self._vocabulary = vocabulary
        self._skip = skip_special_tokens
        self._before: list[int] = []
        self._pending: list[int] = []

    def feed(self, ids: Sequence[int]) -> str:
        return "".join([self._one(i) for i in ids])

    def flush(self) -> str:
        if not self._pending:
            return ""
        text = self._added()
        self._before, self._pending = self._pending, []
        return text

    def _one(self, id: int) -> str:
        self._pending.append(id)
        text = self._added()
        if not text or text.endswith("\ufffd"):
            return ""
        self._before, self._pending = self._pending, []
        return text

    def _added(self) -> str:
        old = self._vocabulary.decode(self._before, self._skip)
        new = self._vocabulary.decode(self._before + self._pending, self._skip)
        return new[len(old) :]


class MarkedDetokenizer:
    """Shows some special tokens where the others are hidden. marks: their ids and texts."""

    def __init__(self, inner: Detokenizer, marks: Mapping[int, str]) -> None:
        self._inner, self._marks = inner, marks

    def feed(self, ids: Sequence[int]) -> str:
        if self._marks.keys().isdisjoint(ids):
            return self._inner.feed(ids)
        parts: list[str] = []
        for id in ids:
            mark = self._marks.get(id)
            parts.append(self._inner.feed((id,)) if mark is None else self._inner.flush() + mark)
        return "".join(parts)

    def flush(self) -> str:
        return self._inner.flush()


def make_detokenizer(
    vocabulary: Vocabulary,
    skip_special_tokens: bool,
    at_start: bool,
    marks: Sequence[str] = (),
) -> Detokenizer:
    """at_start: nothing visible stands before the text, so its first leading space may go.

    marks: special tokens among these are shown also when the others are skipped.
    """
    if marks and skip_special_tokens:
        ids = {vocabulary.id_of(m): m for m in marks}
        shown = {i: m for i, m in ids.items() if i is not None and i in vocabulary.special_ids}
        if shown:
            return MarkedDetokenizer(make_detokenizer(vocabulary, True, at_start), shown)
    table = vocabulary.token_bytes(skip_special_tokens)
    if table is None:
        return WindowDetokenizer(vocabulary, skip_special_tokens)
    return ByteDetokenizer(table, strip_first=at_start and vocabulary.decoding.strips_first)
