"""Text that the grammar forces -> the tokens that the model would have written it in.

The forced text is tokenized behind what was last written. Its last token is left to the model: in
the free text that follows, the token that covers the border is the model's to choose.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.runtime.schedule.grammar.compile import Words

LEAST = 2
"""Tokens worth a pass of their own: they spare one forward pass less than there are of them."""
MOST = 256
_REMEMBERED = 4096


class Jump:
    def __init__(self, words: Words) -> None:
        self._words = words
        self._known: dict[tuple[bytes, bytes], tuple[int, ...]] = {}

    def tokens(self, before: int, forced: bytes) -> tuple[int, ...]:
        """Ids that begin `forced`; () when there are too few. before: the last id, or -1."""
        if len(forced) < LEAST:
            return ()
        anchor = self._bytes(before) if before >= 0 else b""
        key = (anchor, forced)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[key] = self._tokenized(anchor, forced)
        return found

    def _tokenized(self, anchor: bytes, forced: bytes) -> tuple[int, ...]:
        try:
            text = forced.decode()
        except UnicodeDecodeError as e:
            text = forced[: e.start].decode()
        ids = self._behind(anchor, text)
        if ids is None:
            ids = self._words.encode(text)
        taken = tuple(ids[: min(len(ids) - 1, MOST)])
        if len(taken) < LEAST or not forced.startswith(b"".join(map(self._bytes, taken))):
            return ()
        return taken if all(map(self._bytes, taken)) else ()

    def _behind(self, anchor: bytes, text: str) -> Sequence[int] | None:
        """Ids of `text` where it follows `anchor`; None when the border falls within a token."""
        try:
            lead = anchor.decode()
        except UnicodeDecodeError:
            return None
        if not lead:
            return None
        alone, whole = list(self._words.encode(lead)), list(self._words.encode(lead + text))
        return whole[len(alone) :] if whole[: len(alone)] == alone else None

    def _bytes(self, id: int) -> bytes:
        tokens = self._words.tokens
        return tokens[id] if id < len(tokens) else b""
