"""What a TextDelta shows, in turn: thoughts, text, pieces of tool calls; gathered into sections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from appliance.runtime.wire.text import TextDelta


class Part(NamedTuple):
    """text: of kind text or reasoning, or a piece of a tool call's arguments (JSON).

    call, id, name: of a tool call; its number in the answer, and who it is. id and name stand on
    its first part only.
    """

    kind: Literal["text", "reasoning", "tool"]
    text: str
    call: int = 0
    id: str = ""
    name: str = ""


def parts(delta: TextDelta) -> Iterator[Part]:
    if delta.reasoning:
        yield Part("reasoning", delta.reasoning)
    if delta.text:
        yield Part("text", delta.text)
    for call in delta.calls:
        yield Part("tool", call.arguments, call.index, call.id, call.name)


class Section:
    """Consecutive parts of one kind, or of one tool call. index: its place in the answer."""

    def __init__(self, index: int, first: Part) -> None:
        self.index, self.first = index, first
        self.texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Sections:
    """An answer as it has come so far."""

    def __init__(self) -> None:
        self.all: list[Section] = []

    @property
    def has_calls(self) -> bool:
        return any(s.first.kind == "tool" for s in self.all)

    def take(self, part: Part) -> tuple[Section, bool]:
        """The part's section, and whether it has begun with this part."""
        last = self.all[-1].first if self.all else None
        new = last is None or (last.kind, last.call) != (part.kind, part.call)
        if new:
            self.all.append(Section(len(self.all), part))
        self.all[-1].texts.append(part.text)
        return self.all[-1], new
