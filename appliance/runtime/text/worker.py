"""The text room as a frontend uses it: long texts in a few threads, short ones at once.

`tokenizers` lets go of the interpreter lock, so a long prompt in a thread does not hold up the
streams. A hop to a thread costs ~75 µs; a thousand characters encode in ~200 µs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from appliance.errors import RequestError
from appliance.runtime.spec import ModelSpec
from appliance.runtime.text.detokenize import make_detokenizer
from appliance.runtime.text.reading import Forms
from appliance.runtime.text.stop import StopAutomaton, StopScanner
from appliance.runtime.text.stream import AnswerStream
from appliance.runtime.text.template import ChatTemplate, find_template
from appliance.runtime.text.tokenize import Defaults, Tokenizing
from appliance.runtime.text.vocabulary import Vocabulary, read_object
from appliance.runtime.wire.request import TokenRequest, ids_from_bytes
from appliance.runtime.wire.text import Chat, Gives, Infill, Pair, Prompt, TextRequest

INLINE_CHARACTERS = 1000
INLINE_IDS = 2000
_SEEN_AT_START = 8
_SEEN_AT_END = 16

T = TypeVar("T")


class TextWorker:
    """Implements wire.text.TextRoom for the model in `folder`."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        model: str = "",
        threads: int = 2,
        tool_parser: str = "auto",
        reasoning_parser: str = "auto",
        chat_template: str = "",
    ) -> None:
        """NotFoundError or UsageError when the folder's tokenizer cannot be used.

        tool_parser, reasoning_parser, chat_template: as in ModelConfig.
        """
        vocabulary = Vocabulary.load(folder)
        template = find_template(folder, vocabulary.config, chat_template)
        generation = read_object(folder / "generation_config.json")
        self._vocabulary = vocabulary
        self._template = template
        self._forms = Forms.choose(template, tool_parser, reasoning_parser)
        self._context = spec.max_context
        self._gives = Gives(
            spec.pooling,
            spec.normalizes,
            spec.labels,
            spec.activation,
            text=not (spec.labels or spec.headless),
        )
        self._tokenizing = Tokenizing(
            vocabulary,
            ChatTemplate(template, vocabulary, model or folder.name),
            spec,
            Defaults(generation),
        )
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="text")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def tokenize(self, request: TextRequest, context: int) -> list[TokenRequest]:
        return await self._run(_size(request.prompt), lambda: self.tokenize_now(request, context))

    def tokenize_now(self, request: TextRequest, context: int) -> list[TokenRequest]:
        """`tokenize` without an event loop."""
        made = self._tokenizing.requests(request, context)
        grammar = self._forms.grammar(request)
        if grammar is None:
            return made
        id = self._vocabulary.id_of(self._forms.thought_before(request, self._end(made[0])))
        if id is not None and not grammar.after:
            grammar = msgspec.structs.replace(grammar, after=(id,))
        return [msgspec.structs.replace(tokens, grammar=grammar) for tokens in made]

    def _end(self, tokens: TokenRequest) -> str:
        """The text of the prompt's last tokens, special ones included."""
        last = ids_from_bytes(tokens.prompt)[-_SEEN_AT_END:].tolist()
        return self._vocabulary.decode(last, skip_special_tokens=False)

    def stream(self, request: TextRequest, tokens: TokenRequest) -> AnswerStream:
        vocabulary = self._vocabulary
        before = ids_from_bytes(tokens.prompt)[:_SEEN_AT_START].tolist()
        reader = None
        if isinstance(request.prompt, Chat):
            reader = self._forms.reader(request, self._end(tokens))
        at_start = not request.continues or all(i in vocabulary.special_ids for i in before)
        scanner = None
        if request.stop:
            scanner = StopScanner(StopAutomaton(request.stop), request.include_stop)
        return AnswerStream(
            vocabulary,
            make_detokenizer(
                vocabulary, request.skip_special_tokens, at_start, self._forms.marks(request)
            ),
            scanner,
            request.include_stop,
            tokens.sampling.min_tokens,
            reader,
        )

    @property
    def gives(self) -> Gives:
        return self._gives

    async def encode(self, prompt: Prompt, add_special_tokens: bool) -> list[int]:
        return list(
            await self._run(
                _size(prompt),
                lambda: self._tokenizing.prompt_ids(
                    prompt, add_special_tokens, self._context, "prompt"
                ),
            )
        )

    async def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        for id in ids:
            if not 0 <= id < 1 << 31:
                raise RequestError(f"{id} is no token id.", param="tokens")
        inline = len(ids) * INLINE_CHARACTERS // INLINE_IDS
        return await self._run(inline, lambda: self._vocabulary.decode(ids, skip_special_tokens))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        out: list[str] = []
        for id in ids:
            piece = self._vocabulary.piece(id)
            if piece is None:
                raise RequestError(f"the vocabulary has no token {id}.", param="tokens")
            out.append(piece)
        return out

    def facts(self) -> dict[str, Any]:
        facts = dict(self._vocabulary.config)
        facts["vocab_size"] = self._vocabulary.size
        facts["tool_parser"] = self._forms.tools
        facts["reasoning_parser"] = self._forms.reasoning
        if self._template is not None:
            facts["chat_template"] = self._template
        return facts

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        if size <= INLINE_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _size(prompt: Prompt) -> int:
    """Characters to be encoded, about."""
    if isinstance(prompt, str):
        return len(prompt)
    if isinstance(prompt, Infill):
        return len(prompt.before) + len(prompt.after)
    if isinstance(prompt, Pair):
        return len(prompt.first) + len(prompt.second)
    if isinstance(prompt, Chat):
        return sum(len(str(m.get("content") or "")) for m in prompt.messages)
    return len(prompt) // 100
