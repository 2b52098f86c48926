"""One answer taken apart: its text, its thoughts and its tool calls, by the model's own forms."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import UsageError
from appliance.runtime.text.reasoning import (
    REASONING_FORMS,
    begins_in_thought,
    reasoning_form_of,
    thoughts,
)
from appliance.runtime.text.sink import Sink
from appliance.runtime.text.tape import Reading, Tape, marks
from appliance.runtime.text.tools.calls import Tools
from appliance.runtime.text.tools.forced import TAGGED, calls_grammar, strict_grammar
from appliance.runtime.text.tools.forms import TOOL_FORMS, tool_form_of
from appliance.runtime.text.tools.harmony import harmony
from appliance.runtime.wire.request import Grammar
from appliance.runtime.wire.text import CallDelta, Chat, TextRequest


class AnswerReader:
    """Text in, as it comes; what it says out. Constant work for each character."""

    def __init__(self, tape: Tape, sink: Sink, program: Reading[None], hidden: bool) -> None:
        self._tape, self._sink, self._hidden = tape, sink, hidden
        tape.run(program)

    @property
    def thinking(self) -> bool:
        return self._sink.thinking

    def feed(self, text: str) -> None:
        self._tape.feed(text)

    def finish(self) -> None:
        self._tape.finish()
        self._sink.finish()

    def take(self) -> tuple[str, str, tuple[CallDelta, ...]]:
        """Text, thoughts and calls that are new."""
        text, thought, calls = self._sink.take()
        return text, "" if self._hidden else thought, calls


@dataclass(frozen=True)
class Forms:
    """How the model of a folder writes calls and thoughts. `none`: it does not, or is not asked."""

    tools: str
    reasoning: str

    @classmethod
    def choose(cls, template: str | None, tools: str, reasoning: str) -> Forms:
        """`auto` is answered from the chat template. UsageError for a name that is not known."""
        if tools == "auto":
            tools = tool_form_of(template)
        if reasoning == "auto":
            reasoning = reasoning_form_of(template)
        if tools != "none" and tools not in TOOL_FORMS:
            raise _unknown("tool_parser", tools, list(TOOL_FORMS))
        if reasoning != "none" and reasoning not in REASONING_FORMS:
            raise _unknown("reasoning_parser", reasoning, list(REASONING_FORMS))
        return cls(tools, reasoning)

    def marks(self, request: TextRequest) -> tuple[str, ...]:
        """Texts that must be seen although the vocabulary may have them as special tokens."""
        if not isinstance(request.prompt, Chat):
            return ()
        out: tuple[str, ...] = ()
        if self.reasoning != "none":
            out += REASONING_FORMS[self.reasoning].marks
        if request.calls == "model" and self.tools != "none":
            out += TOOL_FORMS[self.tools].marks
        return tuple(dict.fromkeys(out))

    def reader(self, request: TextRequest, prompt_end: str) -> AnswerReader | None:
        """None: the answer is its text. prompt_end: text of the prompt's last tokens."""
        chat = request.prompt
        if not isinstance(chat, Chat):
            return None
        calls = request.calls
        if calls == "model" and self.tools == "none":
            calls = "none"
        harmony_form = "harmony" in (self.tools, self.reasoning) and calls != "forced"
        apart = self.reasoning != "none" and request.reasoning != "inline"
        if calls == "none" and not apart and not harmony_form:
            return None
        tape = Tape()
        form = (
            self._forced_form if calls == "forced" else self.tools if calls == "model" else "none"
        )
        sink = Sink(request.parallel_calls, TOOL_FORMS[self._id_form(form)].make_id)
        if harmony_form:
            program = harmony(tape, sink, sink.thought if apart else sink.text, calls != "none")
        else:
            forced = calls == "forced"
            program = self._program(tape, sink, form, Tools(chat.tools), apart, forced, prompt_end)
        return AnswerReader(tape, sink, program, request.reasoning == "hidden")

    @property
    def _forced_form(self) -> str:
        return self.tools if self.tools in TAGGED else "json"

    def grammar(self, request: TextRequest) -> Grammar | None:
        """What holds an answer to the calls that the request forces, or its calls to the schemas of
        strict tools; else what the request says itself. RequestError when that cannot be done."""
        chat = request.prompt
        if not isinstance(chat, Chat) or request.grammar is not None or not chat.tools:
            return request.grammar
        if request.calls == "model":
            return strict_grammar(self.tools, chat.tools, request.parallel_calls)
        if request.calls == "none":
            return None
        return calls_grammar(
            self._forced_form, chat.tools, request.may_call, request.parallel_calls
        )

    def thought_before(self, request: TextRequest, prompt_end: str) -> str:
        """The mark behind which the answer begins, where the model will think first; else empty.

        A model that may choose whether to think is taken to do so unless it was asked not to.
        """
        chat = request.prompt
        if not isinstance(chat, Chat) or self.reasoning == "none":
            return ""
        form = REASONING_FORMS[self.reasoning]
        if begins_in_thought(form, prompt_end):
            return form.close
        ended = prompt_end.rstrip().endswith(form.close)
        thinks = self.reasoning == "qwen3" and chat.variables.get("enable_thinking") is not False
        return form.close if thinks and not ended else ""

    def _id_form(self, form: str) -> str:
        """Forced calls have the ids that the model's template takes."""
        return "json" if form == "none" else self.tools if self.tools != "none" else form

    def _program(
        self,
        tape: Tape,
        sink: Sink,
        form: str,
        tools: Tools,
        apart: bool,
        forced: bool,
        prompt_end: str,
    ) -> Reading[None]:
        if self.reasoning != "none" and (apart or form != "none"):
            reasoning = REASONING_FORMS[self.reasoning]
            begun = begins_in_thought(reasoning, prompt_end)
            yield from thoughts(tape, sink, reasoning, begun, apart)
        sink.silent = forced
        program = TOOL_FORMS[form].program if form != "none" else None
        if program is None:
            yield from tape.until(sink.text, marks())
        else:
            yield from program(tape, sink, tools)


def _unknown(field: str, name: str, known: list[str]) -> UsageError:
    return UsageError(
        f"model.{field} is {name!r}, and there is no such parser.",
        f"Known: auto, none, {', '.join(known)}.",
    )
