"""One answer: token deltas in, text deltas out. Ties the detokenizer and the stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.runtime.text.detokenize import Detokenizer, make_detokenizer
from appliance.runtime.text.reading import AnswerReader
from appliance.runtime.text.stop import StopScanner
from appliance.runtime.text.vocabulary import Vocabulary
from appliance.runtime.wire.delta import Finish, Logprob, TokenDelta
from appliance.runtime.wire.text import CallDelta, TextDelta, TextLogprob


class AnswerStream:
    """Implements wire.text.TextStream.

    min_tokens: stop strings count only after so many output tokens.
    reader: takes the text apart into answer, thoughts and calls; None: it is all answer.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        detokenizer: Detokenizer,
        scanner: StopScanner | None,
        include_stop: bool,
        min_tokens: int,
        reader: AnswerReader | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._detokenizer = detokenizer
        self._scanner = scanner
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._reader = reader
        self._count = 0
        self._characters = 0

    def feed(self, delta: TokenDelta) -> TextDelta:
        plain = self._scanner is None and self._reader is None
        if plain and not delta.logprobs and not delta.prompt_logprobs:
            self._count += len(delta.ids)
            shown = self._shown(delta)
            text = self._detokenizer.feed(shown) if shown else ""
            if delta.finish:
                text += self._detokenizer.flush()
            self._characters += len(text)
            return TextDelta(
                rid=delta.rid,
                text=text,
                tokens=len(delta.ids),
                ids=delta.ids,
                finish=delta.finish,
                matched=delta.matched if delta.matched >= 0 else None,
                cached=delta.cached,
                error=delta.error,
                code=delta.code,
                pooled=delta.pooled,
            )
        return self._feed_each(delta)

    def _shown(self, delta: TokenDelta) -> tuple[int, ...]:
        """The ids whose text is part of the answer: not the stop id that ended it."""
        ids = delta.ids
        if delta.matched >= 0 and not self._include_stop and ids and ids[-1] == delta.matched:
            return ids[:-1]
        return ids

    def _feed_each(self, delta: TokenDelta) -> TextDelta:
        """Token by token: a stop string may end the answer in the middle of a delta."""
        said = _Said(self._reader)
        offsets: list[int] = []
        scanner, shown = self._scanner, len(self._shown(delta))
        taken, finish, matched = 0, delta.finish, None
        for id in delta.ids:
            offsets.append(self._characters)
            taken += 1
            self._count += 1
            text = self._detokenizer.feed((id,)) if taken <= shown else ""
            self._characters += len(text)
            said.add(self._scan(text))
            if scanner is not None and scanner.matched is not None:
                break
        if delta.finish and (scanner is None or scanner.matched is None):
            said.add_rest(self._scan(self._detokenizer.flush()))
            if scanner is not None and scanner.matched is None:
                said.add_rest(scanner.flush())
        if scanner is not None and scanner.matched is not None:
            finish, matched = _STOPPED, scanner.matched
        text, reasoning, calls = said.take(ended=bool(finish))
        return TextDelta(
            rid=delta.rid,
            text=text,
            tokens=taken,
            ids=delta.ids[:taken],
            finish=finish,
            matched=matched or (delta.matched if delta.matched >= 0 else None),
            cached=delta.cached,
            logprobs=self._spell(delta.logprobs[:taken], offsets),
            prompt_logprobs=self._prompt_logprobs(delta.prompt_logprobs),
            error=delta.error,
            reasoning=reasoning,
            calls=calls,
            reasoning_tokens=said.thought_tokens,
            code=delta.code,
        )

    def _scan(self, text: str) -> str:
        if self._scanner is None or self._count <= self._min_tokens:
            return text
        return self._scanner.feed(text)

    def _spell(
        self, logprobs: Sequence[Logprob], offsets: Sequence[int]
    ) -> tuple[TextLogprob, ...]:
        return tuple(
            self._one(lp, offset, lp.logprob) for lp, offset in zip(logprobs, offsets, strict=False)
        )

    def _one(self, lp: Logprob, offset: int, logprob: float | None) -> TextLogprob:
        text, raw = self._vocabulary.spell(lp.id)
        top = tuple(
            (id, *self._vocabulary.spell(id), value)
            for id, value in zip(lp.top_ids, lp.top_logprobs, strict=True)
        )
        return TextLogprob(lp.id, text, raw, logprob, offset, top)

    def _prompt_logprobs(self, logprobs: Sequence[Logprob]) -> tuple[TextLogprob, ...]:
        if not logprobs:
            return ()
        reader = make_detokenizer(self._vocabulary, skip_special_tokens=True, at_start=True)
        out: list[TextLogprob] = []
        at = 0
        for i, lp in enumerate(logprobs):
            out.append(self._one(lp, at, lp.logprob if i else None))
            at += len(reader.feed((lp.id,)))
        return tuple(out)


class _Said:
    """The text of one delta, taken apart where a reader is there."""

    def __init__(self, reader: AnswerReader | None) -> None:
        self._reader = reader
        self._parts: list[str] = []
        self.thought_tokens = 0

    def add(self, text: str) -> None:
        """What one token adds."""
        reader = self._reader
        if reader is None:
            self._parts.append(text)
            return
        before = reader.thinking
        reader.feed(text)
        self.thought_tokens += before or reader.thinking

    def add_rest(self, text: str) -> None:
        """What was held back."""
        if self._reader is None:
            self._parts.append(text)
        else:
            self._reader.feed(text)

    def take(self, ended: bool) -> tuple[str, str, tuple[CallDelta, ...]]:
        if self._reader is None:
            return "".join(self._parts), "", ()
        if ended:
            self._reader.finish()
        return self._reader.take()


_STOPPED: Finish = "stop"
