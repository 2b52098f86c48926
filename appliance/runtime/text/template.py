"""Chat messages -> the prompt's text, by the model's own template in transformers' sandbox.

Special tokens that a caller spells out inside a message stay plain text: they are marked before the
template runs, and the marked stretches are encoded apart.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from appliance.errors import DamagedError, RequestError, UsageError
from appliance.runtime.text.siblings import chat_sibling
from appliance.runtime.text.vocabulary import Vocabulary, read_object
from appliance.runtime.wire.text import Chat

_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
"""Private-use characters around a special token that a message spells out."""

_ASKS_FOR_NONE = ("content'] is none", "content is none")
"""In a template that shows the calls of a message only where it has no content at all."""

_OURS = frozenset({"conversations", "chat_template", "tools", "documents", "messages"})
_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")

_CURE = "Correct it, or leave --chat-template out: the model's own is taken then."


def read_template(path: Path) -> str:
    """A template of the operator's. UsageError when it is not there, empty, or no Jinja."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not text"
        raise UsageError(
            f"the chat template {path} cannot be read: {why}.", _CURE, code="APL-USE-045"
        ) from e
    if not text.strip():
        raise UsageError(f"the chat template {path} is empty.", _CURE, code="APL-USE-045")
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_marks(text))
    except TemplateSyntaxError as e:
        raise UsageError(
            f"{path}, line {e.lineno}, is no Jinja template: {e.message}.",
            _CURE,
            code="APL-USE-045",
        ) from e
    return text


def _without_marks(text: str) -> str:
    """transformers' own tag around what the assistant says, which plain Jinja does not know."""
    return re.sub(r"{%(-?)\s*(end)?generation\s*(-?)%}", "", text)


def find_template(folder: Path, config: dict[str, Any], given: str = "") -> str | None:
    """The file that was given; else chat_template.jinja, chat_template.json, tokenizer_config.json;
    None for a base model. Of several named templates the one named `default` is taken."""
    if given:
        return read_template(Path(given))
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text()
    value = read_object(folder / "chat_template.json").get("chat_template")
    value = config.get("chat_template") if value is None else value
    if isinstance(value, list):
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise DamagedError(f"the chat template in {folder} is not text")
    return value or None


class ChatTemplate:
    def __init__(self, template: str | None, vocabulary: Vocabulary, model: str) -> None:
        self._template = template
        self._vocabulary = vocabulary
        self._model = model
        self._tokens = {name: vocabulary.special(name) for name in _TOKENS}
        spelled = "|".join(map(re.escape, vocabulary.special_texts))
        self._spelled = re.compile(spelled) if spelled else None
        self._knows_developer = template is not None and "developer" in template
        self._asks_for_none = any(ask in (template or "") for ask in _ASKS_FOR_NONE)

    def encode(self, chat: Chat) -> list[int]:
        """The prompt's ids. RequestError when the model has no template, or the template refuses
        the messages."""
        text, marked = self._render(chat)
        if not marked:
            return self._vocabulary.encode(text, add_special_tokens=False)
        ids: list[int] = []
        for i, part in enumerate(re.split(f"[{_OPEN}{_CLOSE}]", text)):
            if part:
                ids += self._encode_inner(part, plain=i % 2 == 1, first=not ids)
        return ids

    def _render(self, chat: Chat) -> tuple[str, bool]:
        if self._template is None:
            sibling = chat_sibling(self._model)
            by_name = f", by its maker's names {sibling}" if sibling else ""
            raise RequestError(
                f"{self._model} is a base model: it has no chat template. Use /v1/completions; "
                f"or serve its sibling that is made for chats{by_name}; or give it a template: "
                "appliance up --chat-template FILE.",
                code="no_chat_template",
                param="messages",
            )
        reserved = sorted(_OURS & chat.variables.keys())
        if reserved:
            raise RequestError(
                f"chat_template_kwargs may not set {', '.join(reserved)}.",
                param="chat_template_kwargs",
            )
        marker = _Marker(self._spelled)
        messages = [self._message(m, marker) for m in chat.messages]
        try:
            return self._fill(self._template, chat, messages), marker.used
        except TypeError as e:
            # a template that joins the arguments of calls to its text wants them as text
            written = [_with_written_arguments(m) for m in messages]
            if written == messages:
                raise _refused(e) from e
        except Exception as e:  # a template is a program: it may raise anything at all
            raise _refused(e) from e
        try:
            return self._fill(self._template, chat, written), marker.used
        except Exception as e:
            raise _refused(e) from e

    def _fill(self, template: str, chat: Chat, messages: list[dict[str, Any]]) -> str:
        variables = {**self._tokens, **chat.variables}
        if chat.continue_final:
            variables["continue_final_message"] = True
        rendered = render_jinja_template(
            conversations=[messages],
            tools=chat.tools,
            chat_template=template,
            add_generation_prompt=chat.add_generation_prompt and not chat.continue_final,
            **variables,
        )
        text: str = rendered[0][0]
        return text

    def _message(self, message: dict[str, Any], marker: _Marker) -> dict[str, Any]:
        out: dict[str, Any] = marker.mark(message)
        out["role"] = message["role"]
        if out["role"] == "developer" and not self._knows_developer:
            out["role"] = "system"
        calls = out.get("tool_calls")
        if isinstance(calls, list):
            out["tool_calls"] = [_with_parsed_arguments(c) for c in calls]
            if self._asks_for_none and not out.get("content"):
                out["content"] = None
        return out

    def _encode_inner(self, text: str, plain: bool, first: bool) -> list[int]:
        """plain: special tokens in it are cut in two, so that none is recognised."""
        if not plain:
            return self._encode_after_newline(text, first)
        return self._encode_after_newline(text[:1], first) + self._encode_after_newline(
            text[1:], False
        )

    def _encode_after_newline(self, text: str, first: bool) -> list[int]:
        """Encodes a stretch from the middle of a text: SentencePiece-like tokenizers put a space
        before a text's start, which a newline in front takes instead."""
        if first or not text:
            return self._vocabulary.encode(text, add_special_tokens=False)
        newline = self._vocabulary.encode("\n", add_special_tokens=False)
        ids = self._vocabulary.encode("\n" + text, add_special_tokens=False)
        if ids[: len(newline)] == newline:
            return ids[len(newline) :]
        return self._vocabulary.encode(text, add_special_tokens=False)


class _Marker:
    """Puts marks around the special tokens in every text of a message."""

    def __init__(self, spelled: re.Pattern[str] | None) -> None:
        self._spelled = spelled
        self.used = False

    def mark(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._mark_text(value)
        if isinstance(value, dict):
            return {k: self.mark(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.mark(v) for v in value]
        return value

    def _mark_text(self, text: str) -> str:
        if _OPEN in text or _CLOSE in text:
            text = text.replace(_OPEN, "").replace(_CLOSE, "")
        if self._spelled is None or self._spelled.search(text) is None:
            return text
        self.used = True
        return self._spelled.sub(lambda m: f"{_OPEN}{m.group()}{_CLOSE}", text)


def _with_parsed_arguments(call: Any) -> Any:
    """Templates expect the arguments of a tool call as an object; clients send them as text."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments else {}
        except ValueError as e:
            raise RequestError(
                "the arguments of a tool call in messages are not JSON.", param="messages"
            ) from e
    return {**call, "function": {**function, "arguments": arguments}}


def _with_written_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    out: list[Any] = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and not isinstance(function.get("arguments"), str):
            text = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
            call = {**call, "function": {**function, "arguments": text}}
        out.append(call)
    return {**message, "tool_calls": out}


def _refused(e: Exception) -> RequestError:
    return RequestError(
        f"the model's chat template refuses these messages: {_first_line(e)}",
        code="template_error",
        param="messages",
    )


def _first_line(e: Exception) -> str:
    text = str(e).strip().split("\n", 1)[0]
    return text[:200] or type(e).__name__
