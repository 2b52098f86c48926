"""Thoughts before an answer: which marks a model puts around them, and the split along those."""

from __future__ import annotations

from typing import NamedTuple

from appliance.runtime.text.sink import Sink
from appliance.runtime.text.tape import Reading, Tape, marks
from appliance.runtime.text.tools.harmony import MARKS as HARMONY_MARKS


class ReasoningForm(NamedTuple):
    """always: the answer begins within a thought even when no mark says so.

    Without marks around thoughts (harmony), channels tell them apart.
    """

    open: str = ""
    close: str = ""
    always: bool = False
    marks: tuple[str, ...] = ()


def _between(open: str, close: str, always: bool = False) -> ReasoningForm:
    return ReasoningForm(open, close, always, (open, close))


REASONING_FORMS: dict[str, ReasoningForm] = {
    "harmony": ReasoningForm(marks=HARMONY_MARKS),
    "deepseek-r1": _between("<think>", "</think>", always=True),
    "qwen3": _between("<think>", "</think>"),
    "think": _between("<think>", "</think>"),
    "mistral": _between("[THINK]", "[/THINK]"),
}

_TOLD_BY: tuple[tuple[str, str], ...] = (
    ("<|channel|>", "harmony"),
    ("[THINK]", "mistral"),
    ("enable_thinking", "qwen3"),
    ("</think>", "think"),
)


def reasoning_form_of(template: str | None) -> str:
    """Name in REASONING_FORMS; `none` where the template knows of no thoughts."""
    return next((form for mark, form in _TOLD_BY if mark in (template or "")), "none")


def begins_in_thought(form: ReasoningForm, prompt_end: str) -> bool:
    """prompt_end: the text of the prompt's last tokens, special ones included."""
    end = prompt_end.rstrip()
    if form.always:
        return not end.endswith(form.close)
    return bool(form.open) and end.endswith(form.open)


def thoughts(
    tape: Tape, sink: Sink, form: ReasoningForm, begun: bool, apart: bool
) -> Reading[None]:
    """Reads to the end of the thoughts, or up to the first character of an answer without any.

    A mark counts at the start of an answer only: further on it is what the answer speaks of.
    apart: thoughts go where they belong; else they stay text, marks and all.
    """
    tape.hold()
    c = yield from tape.skip_space()
    tape.unread(c)
    opened = yield from tape.literal(form.open)
    held = tape.release()
    if not begun and not opened:
        sink.text(held)
        return
    sink.thinking = True
    if not apart:
        sink.text(held)
        sink.text((yield from tape.until(sink.text, marks(form.close))))
        sink.thinking = False
        return
    if not opened:
        sink.thought(held)
    yield from tape.until(sink.thought, marks(form.close))
    sink.end_thought()
