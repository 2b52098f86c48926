"""Which form of tool calls a model writes: a table, and the marks in a chat template that tell."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable
from typing import NamedTuple, Protocol

from appliance.runtime.text.sink import Sink, long_id
from appliance.runtime.text.tape import Reading, Tape
from appliance.runtime.text.tools.calls import Tools
from appliance.runtime.text.tools.harmony import MARKS as HARMONY_MARKS
from appliance.runtime.text.tools.programs import Bare, Pairs, Wrapped, hermes, lines, mistral


class Program(Protocol):
    def __call__(self, tape: Tape, sink: Sink, tools: Tools, /) -> Reading[None]: ...


def short_id() -> str:
    """Nine letters and digits: what Mistral's templates take."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class ToolForm(NamedTuple):
    """program: None where thoughts and calls are one form and read together (harmony).

    marks: what the program looks for, also where the vocabulary has it as a special token.
    """

    program: Program | None
    marks: tuple[str, ...] = ()
    make_id: Callable[[], str] = long_id


_DEEPSEEK = Wrapped(
    ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    word="function",
)
_KIMI = Wrapped(
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
_GLM45 = Pairs(
    "",
    ("<arg_key>", "</tool_call>"),
    ("<arg_key>", "</arg_key>"),
    ("<arg_value>", "</arg_value>"),
    ("</tool_call>",),
)
_QWEN3_CODER = Pairs(
    "<function=",
    (">",),
    ("<parameter=", ">"),
    ("", "</parameter>"),
    ("</function>", "</tool_call>"),
    quote="\n",
)
_LLAMA_MARKS = ("<|python_tag|>", "<|python_start|>")
_TOOL_CALL = ("<tool_call>", "</tool_call>")

TOOL_FORMS: dict[str, ToolForm] = {
    "harmony": ToolForm(None, HARMONY_MARKS),
    "deepseek-v3": ToolForm(
        _DEEPSEEK, (*_DEEPSEEK.sections, _DEEPSEEK.begin, _DEEPSEEK.separator, _DEEPSEEK.end)
    ),
    "kimi-k2": ToolForm(_KIMI, (*_KIMI.sections, _KIMI.begin, _KIMI.separator, _KIMI.end)),
    "glm45": ToolForm(_GLM45, (*_TOOL_CALL, *_GLM45.key, *_GLM45.value)),
    "glm4": ToolForm(lines, ("<|assistant|>",)),
    "qwen3-coder": ToolForm(_QWEN3_CODER, _TOOL_CALL),
    "hermes": ToolForm(hermes, _TOOL_CALL),
    "mistral": ToolForm(mistral, ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), short_id),
    "llama3": ToolForm(Bare(_LLAMA_MARKS), _LLAMA_MARKS),
    "pythonic": ToolForm(Bare(_LLAMA_MARKS), _LLAMA_MARKS),
    "json": ToolForm(Bare()),
}

_TOLD_BY: tuple[tuple[str, str], ...] = (
    ("<|channel|>", "harmony"),
    ("<｜tool▁calls▁begin｜>", "deepseek-v3"),
    ("<|tool_call_argument_begin|>", "kimi-k2"),
    ("<arg_key>", "glm45"),
    ("<function=", "qwen3-coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama3"),
    ("Environment: ipython", "llama3"),
    ("<|python_start|>", "pythonic"),
    ("[func_name1(", "pythonic"),
    ("<|observation|>", "glm4"),
)
"""First that stands in the template wins: those that a further one contains come before it."""


def tool_form_of(template: str | None) -> str:
    """Name in TOOL_FORMS; `json` where the template does not tell."""
    return next((form for mark, form in _TOLD_BY if mark in (template or "")), "json")
