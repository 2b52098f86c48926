"""Grammar -> Compiled (in the box) -> Matcher (in the engine). The only door to the libraries.

xgrammar loads torch, so both libraries are imported when they are first needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from appliance.runtime.schedule.grammar import schema as schemas
from appliance.runtime.wire.request import Grammar

Int32s = npt.NDArray[np.int32]

MAX_SOURCE = 256 << 10
"""Bytes of a grammar's source."""
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_FAR = 64
_MOST_SPACES = 24
"""Whitespace characters in a row where layout is free; a model could write them for ever."""


class Refused(Exception):
    """A grammar that cannot be served. code: `grammar_invalid` or `grammar_too_complex`."""

    def __init__(self, message: str, code: str = "grammar_invalid") -> None:
        super().__init__(message)
        self.code = code


class Words(Struct):
    """The vocabulary as grammars see it.

    tokens: the bytes of each id; empty for special tokens, which no grammar allows. encode: ids of
    a text, without special tokens.
    """

    tokens: list[bytes]
    encode: Callable[[str], Sequence[int]]


class Compiled(Struct, array_like=True):
    """What crosses from the box. form: of xgrammar a compiled grammar, of llguidance its input."""

    library: Literal["xgrammar", "llguidance"]
    form: str


class Matching(Protocol):
    """A library's state after some tokens."""

    def accept(self, token: int) -> bool:
        """False when the grammar does not allow it; the state means nothing then."""

    def fill(self, bits: Int32s) -> None:
        """bits: int32 [words], one bit for each id and one more; set where it may come next."""

    def is_complete(self) -> bool:
        """Whether the output may end here."""

    def forced(self) -> bytes:
        """Text that must follow, whatever comes."""

    def fault(self) -> str:
        """Why the library has given up; empty while it has not."""


class Libraries:
    """Both libraries on one vocabulary. vocab: ids of the model, at least len(words.tokens).

    Both want a token that ends an output; it is given the id behind the last, so that which of the
    model's ids may end one stays with the caller.
    """

    def __init__(self, words: Words, vocab: int) -> None:
        import llguidance
        import xgrammar

        self._xgrammar, self._llguidance = xgrammar, llguidance
        self._vocab = vocab
        self._words = words
        tokens = words.tokens[:vocab]
        padded = [*tokens, *[b""] * (vocab + 1 - len(tokens))]
        self._tokens = xgrammar.TokenizerInfo(
            padded, xgrammar.VocabType.RAW, vocab_size=vocab + 1, stop_token_ids=[vocab]
        )
        self._ll_tokens: Any = None

    def compile(self, grammar: Grammar) -> Compiled:
        """Refused, with words for the caller."""
        if grammar.kind in ("json_schema", "json_object"):
            return self._compile_json(grammar)
        if grammar.kind == "regex" and _counts_far(grammar.source):
            form = self._llguidance.LLMatcher.grammar_from_regex(grammar.source)
            if not self._refusal(form):
                return Compiled("llguidance", form)
        compiler = self._xgrammar.GrammarCompiler(self._tokens, max_threads=1, cache_enabled=False)
        try:
            match grammar.kind:
                case "regex":
                    made = compiler.compile_regex(grammar.source)
                case "ebnf":
                    made = compiler.compile_grammar(grammar.source)
                case _:
                    made = compiler.compile_structural_tag(_with_any_of(grammar.source))
            return Compiled("xgrammar", made.serialize_json())
        except Exception as e:  # the bindings raise RuntimeError, TypeError and their own
            return self._other(grammar, _plain_words(e))

    def open(self, compiled: Compiled) -> Callable[[], Matching]:
        """What makes matchers of a compiled grammar, each at its beginning."""
        if compiled.library == "xgrammar":
            grammar = self._xgrammar.CompiledGrammar.deserialize_json(compiled.form, self._tokens)
            return lambda: _XMatching(self._xgrammar.GrammarMatcher(grammar))
        first = self._llguidance.LLMatcher(
            self._guidance(), compiled.form, log_level=0, limits=self._limits()
        )
        return lambda: _LLMatching(first.deep_copy())

    def _compile_json(self, grammar: Grammar) -> Compiled:
        try:
            source = json.loads(grammar.source) if grammar.kind == "json_schema" else _OBJECT
            if not isinstance(source, dict | bool):
                raise Refused("a JSON schema is an object or a boolean.")
            schema = schemas.definite(schemas.with_any_of(source))
        except schemas.TooDeep as e:
            raise Refused(f"{e}.", "grammar_too_complex") from e
        except schemas.NotExclusive as e:
            raise Refused(f"{e}.") from e
        except ValueError as e:
            raise Refused(f"the JSON schema is no JSON: {e}.") from e
        if schemas.is_plain(schema):
            try:
                return self._plain_schema(schema, grammar.any_whitespace)
            except RuntimeError as e:
                return self._guided_schema(schema, grammar, _plain_words(e))
        return self._guided_schema(schema, grammar, "")

    def _plain_schema(self, schema: Any, any_whitespace: bool) -> Compiled:
        compiler = self._xgrammar.GrammarCompiler(self._tokens, max_threads=1, cache_enabled=False)
        made = compiler.compile_json_schema(
            json.dumps(schema),
            any_whitespace=any_whitespace,
            strict_mode=False,
            max_whitespace_cnt=_MOST_SPACES if any_whitespace else None,
        )
        return Compiled("xgrammar", made.serialize_json())

    def _guided_schema(self, schema: Any, grammar: Grammar, why: str) -> Compiled:
        options: dict[str, Any] = {}
        if grammar.any_whitespace:
            options["whitespace_pattern"] = f"[\\x20\\x0A\\x0D\\x09]{{0,{_MOST_SPACES}}}"
        else:
            options |= _LAYOUT
        matcher: Any = self._llguidance.LLMatcher
        form = matcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
        error = self._refusal(form)
        if error and not grammar.strict:
            options["lenient"] = True
            form = matcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
            error = self._refusal(form)
        if error:
            raise Refused(_first_line(why or error))
        return Compiled("llguidance", form)

    def _other(self, grammar: Grammar, why: str) -> Compiled:
        """llguidance's reading of what xgrammar refused; `why` stands when both refuse."""
        matcher = self._llguidance.LLMatcher
        if grammar.kind == "regex":
            form = matcher.grammar_from_regex(grammar.source)
        elif grammar.kind == "ebnf":
            form = matcher.grammar_from_lark(grammar.source)
        else:
            raise Refused(why)
        if self._refusal(form):
            raise Refused(why)
        return Compiled("llguidance", form)

    def _refusal(self, form: str) -> str:
        refused, words = self._llguidance.LLMatcher.validate_grammar_with_warnings(
            form, self._guidance(), limits=self._limits()
        )
        return str(words[0]) if refused else ""

    def _limits(self) -> Any:
        return self._llguidance.LLParserLimits(verbose_errors=False)

    def _guidance(self) -> Any:
        if self._ll_tokens is None:
            words: Any = _GuidanceWords(self._words, self._vocab)
            self._ll_tokens = self._llguidance.LLTokenizer(words, n_vocab=self._vocab + 1)
        return self._ll_tokens


_OBJECT = {"type": "object"}


class _GuidanceWords:
    """The vocabulary in the form that llguidance asks for: attributes by these names."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, words: Words, vocab: int) -> None:
        self._encode = words.encode
        self.eos_token_id = vocab
        known = words.tokens[:vocab]
        whole = [*known, *[b""] * (vocab + 1 - len(known))]
        self.tokens = [t or f"<|{i}|>".encode() for i, t in enumerate(whole)]
        self.special_token_ids = [i for i, t in enumerate(whole) if not t]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(self._encode(text if isinstance(text, str) else text.decode()))


class _XMatching:
    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def accept(self, token: int) -> bool:
        return bool(self._matcher.accept_token(token))

    def fill(self, bits: Int32s) -> None:
        if not self._matcher.fill_next_token_bitmask(bits[None], 0):
            bits[:] = -1

    def is_complete(self) -> bool:
        return bool(self._matcher.is_completed())

    def forced(self) -> bytes:
        try:
            text: str = self._matcher.find_jump_forward_string()
        except UnicodeDecodeError:  # it begins or ends within a character
            return b""
        return text.encode()

    def fault(self) -> str:
        return ""


class _LLMatching:
    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def accept(self, token: int) -> bool:
        return not self._matcher.is_stopped() and bool(self._matcher.consume_token(token))

    def fill(self, bits: Int32s) -> None:
        if self._matcher.is_stopped():
            bits[:] = 0
            return
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)

    def is_complete(self) -> bool:
        return bool(self._matcher.is_accepting())

    def forced(self) -> bytes:
        return b"" if self._matcher.is_stopped() else bytes(self._matcher.compute_ff_bytes())

    def fault(self) -> str:
        return _first_line(self._matcher.get_error()) if self._matcher.is_error() else ""


def _with_any_of(source: str) -> str:
    """A structural tag whose schemas say anyOf for each oneOf. NotExclusive when one means more."""
    if '"oneOf"' not in source:
        return source

    def change(node: Any) -> Any:
        if isinstance(node, list):
            return [change(each) for each in node]
        if not isinstance(node, dict):
            return node
        return {
            key: schemas.with_any_of(value) if key == "json_schema" else change(value)
            for key, value in node.items()
        }

    return json.dumps(change(json.loads(source)))


def _counts_far(expression: str) -> bool:
    """Whether something is repeated a counted number of times that xgrammar would write out."""
    counts = [part.partition("}")[0] for part in expression.split("{")[1:]]
    numbers = [n for c in counts for n in c.split(",") if n.isascii() and n.isdigit()]
    return any(len(n) > 4 or int(n) >= _FAR for n in numbers)


def _plain_words(error: Exception) -> str:
    """A binding's complaint without its clock and source line."""
    text = _first_line(str(error))
    _, found, rest = text.partition(".cc:")
    if found:
        _, _, text = rest.partition(": ")
    return text[:300] or "it cannot be read."


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else ""
