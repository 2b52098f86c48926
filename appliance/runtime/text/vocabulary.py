"""The loaded tokenizer of a model folder: ids <-> text, special ids, and the bytes of each token.

Needs tokenizer.json (the `tokenizers` library's own form); loads no torch.
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from appliance.errors import DamagedError, NotFoundError, UsageError


class ByteForm(Protocol):
    """How a kind of vocabulary writes a token's bytes."""

    def __call__(self, piece: str) -> bytes: ...


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins byte-level BPE writes for the 256 bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(shown)]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_alphabet()


def byte_level(piece: str) -> bytes:
    """A piece with a character outside the alphabet is an added token written as plain text."""
    try:
        return bytes([_BYTES[c] for c in piece])
    except KeyError:
        return piece.encode()


def marked_space(piece: str) -> bytes:
    """SentencePiece's form: ▁ is a space, <0xNN> a byte that no piece covers."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            pass
    return piece.replace("▁", " ").encode()


class Decoding:
    """What a decoder chain of tokenizer.json means.

    form: None when the chain is none that is understood byte by byte.
    strips_first: the whole text loses one leading space.
    """

    def __init__(self, form: ByteForm | None, strips_first: bool = False) -> None:
        self.form, self.strips_first = form, strips_first


def read_decoding(decoder: dict[str, Any] | None) -> Decoding:
    chain = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = [d.get("type") for d in chain]
    if kinds == ["ByteLevel"]:
        return Decoding(byte_level)
    if kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        strips = False
        for d in chain:
            if d["type"] == "Replace" and (d.get("pattern"), d.get("content")) != (
                {"String": "▁"},
                " ",
            ):
                return Decoding(None)
            if d["type"] == "Strip":
                if (d.get("content"), d.get("start"), d.get("stop")) != (" ", 1, 0):
                    return Decoding(None)
                if "Fuse" not in kinds[: kinds.index("Strip")]:
                    return Decoding(None)
                strips = True
            if d["type"] == "Metaspace":
                if d.get("replacement") != "▁":
                    return Decoding(None)
                strips = strips or d.get("prepend_scheme", "always") != "never"
        if "Replace" in kinds or "Metaspace" in kinds:
            return Decoding(marked_space, strips)
    return Decoding(None)


class TokenBytes(dict[int, bytes]):
    """id -> bytes it adds to the text, filled when first asked for. Unknown ids add nothing."""

    def __init__(self, tokenizer: Tokenizer, form: ByteForm, special: dict[int, bytes]) -> None:
        super().__init__(special)
        self._tokenizer, self._form = tokenizer, form

    def __missing__(self, id: int) -> bytes:
        piece = self._tokenizer.id_to_token(id) if id >= 0 else None
        value = b"" if piece is None else self._form(piece)
        self[id] = value
        return value


class Vocabulary:
    """Thread-safe once made: `tokenizers` takes no lock that Python sees, and nothing here changes
    but caches."""

    def __init__(self, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, t in added.items() if t.special)
        self.special_texts = tuple(
            sorted((added[i].content for i in self.special_ids), key=len, reverse=True)
        )
        decoder = tokenizer.decoder
        self.decoding = read_decoding(json.loads(decoder.__getstate__()) if decoder else None)
        self._hidden: TokenBytes | None = None
        self._shown: TokenBytes | None = None
        if self.decoding.form is not None:
            names = {i: added[i].content.encode() for i in self.special_ids}
            self._hidden = TokenBytes(tokenizer, self.decoding.form, dict.fromkeys(names, b""))
            self._shown = TokenBytes(tokenizer, self.decoding.form, names)

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """NotFoundError without tokenizer.json; DamagedError when a file cannot be read."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise NotFoundError(
                f"{folder} holds no tokenizer.json, so its text cannot be read.",
                "Pull the model again; if its repository has only tokenizer.model, convert it with "
                "transformers (AutoTokenizer.from_pretrained(…).save_pretrained(…)).",
                code="APL-NOT-008",
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as e:  # the library raises bare Exception for every fault of the file
            raise DamagedError(f"{path} cannot be read: {e}") from e
        tokenizer.no_padding()
        tokenizer.no_truncation()
        made = cls(tokenizer, read_object(folder / "tokenizer_config.json"))
        _return_freed_memory()
        return made

    def id_of(self, text: str) -> int | None:
        id: int | None = self.tokenizer.token_to_id(text)
        return id

    def special(self, name: str) -> str:
        """Text of `bos_token`, `eos_token`, …; empty when the model has none."""
        value = self.config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) else ""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_pair(self, first: str, second: str) -> list[int]:
        """Two texts as the tokenizer's own form of a pair, special tokens included."""
        ids: list[int] = self.tokenizer.encode(first, second, add_special_tokens=True).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, skip_special_tokens: bool) -> TokenBytes | None:
        """None when this vocabulary cannot be decoded token by token."""
        return self._hidden if skip_special_tokens else self._shown

    def spelled(self) -> list[bytes]:
        """The bytes each id adds to a text, empty for special tokens. UsageError when this
        vocabulary cannot be decoded token by token."""
        if self._hidden is None:
            raise UsageError(
                "This model's tokens have no bytes of their own, so no grammar can hold them."
            )
        return [self._hidden[id] for id in range(self.size)]

    def piece(self, id: int) -> str | None:
        """The token as the vocabulary writes it."""
        piece: str | None = self.tokenizer.id_to_token(id)
        return piece

    def spell(self, id: int) -> tuple[str, bytes]:
        """One token by itself, for log probabilities: its text and its bytes."""
        if self._shown is not None:
            raw = self._shown[id]
            try:
                return raw.decode(), raw
            except UnicodeDecodeError:
                return "bytes:" + "".join(f"\\x{b:02x}" for b in raw), raw
        text = self.decode([id], skip_special_tokens=False)
        return text, text.encode()


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of the model folder; empty when the file is not there."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise DamagedError(f"{path} cannot be read: {e}") from e
    if not isinstance(value, dict):
        raise DamagedError(f"{path} is not a JSON object")
    return value


def _return_freed_memory() -> None:
    """A large tokenizer.json leaves ~40 MB of freed blocks behind; glibc keeps them unless told."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass
