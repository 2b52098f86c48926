"""Calls and thoughts out of answers: golden transcripts, every cut, and what is out to do harm."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any, get_args

import pytest
from golden_answers import GOLDEN, TOOLS, Golden
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import UsageError
from appliance.runtime.config import ReasoningParser, ToolParser
from appliance.runtime.text.reading import Forms
from appliance.runtime.text.reasoning import REASONING_FORMS, reasoning_form_of
from appliance.runtime.text.tape import Tape
from appliance.runtime.text.tools.forms import TOOL_FORMS, tool_form_of
from appliance.runtime.wire.text import AskedSampling, Chat, TextRequest

Message = tuple[str, str, list[tuple[str, str]]]


def request(**fields: Any) -> TextRequest:
    chat = Chat([{"role": "user", "content": "?"}], tools=TOOLS)
    asked = {"calls": "model", "reasoning": "separate", **fields}
    return TextRequest(rids=(1,), prompt=chat, sampling=AskedSampling(), **asked)


def read(golden: Golden, pieces: Iterable[str]) -> Message:
    """The whole message, as a client puts it together from deltas."""
    reader = Forms(golden.tools, golden.thinks).reader(request(**golden.fields), golden.prompt_end)
    assert reader is not None
    text, reasoning = "", ""
    calls: list[list[str]] = []
    ids: set[str] = set()
    for piece in [*pieces, None]:
        if piece is None:
            reader.finish()
        else:
            reader.feed(piece)
        new_text, thought, deltas = reader.take()
        text, reasoning = text + new_text, reasoning + thought
        for delta in deltas:
            if delta.index == len(calls):
                assert delta.id and delta.id not in ids and delta.name
                ids.add(delta.id)
                calls.append([delta.name, ""])
            else:
                assert delta.index == len(calls) - 1 and not delta.name and not delta.id
            calls[delta.index][1] += delta.arguments
    return text, reasoning, [(n, a) for n, a in calls]


def named(golden: Golden) -> str:
    return f"{golden.tools}-{golden.thinks}-{golden.name}".replace(" ", "-")


@pytest.mark.parametrize("golden", GOLDEN, ids=named)
def test_golden_transcripts(golden: Golden) -> None:
    text, reasoning, calls = read(golden, [golden.said])
    assert text == golden.text
    assert reasoning == golden.reasoning
    assert [(n, json.loads(a)) for n, a in calls] == list(golden.calls)


@pytest.mark.parametrize("golden", GOLDEN, ids=named)
def test_every_cut_gives_the_same_message(golden: Golden) -> None:
    want, said = read(golden, [golden.said]), golden.said
    assert read(golden, said) == want
    for at in range(1, len(said)):
        assert read(golden, [said[:at], said[at:]]) == want


@pytest.mark.parametrize("golden", GOLDEN, ids=named)
def test_every_answer_may_end_anywhere(golden: Golden) -> None:
    """What a shorter answer says is the beginning of what the whole one says, or text."""
    for at in range(len(golden.said)):
        said = golden.said[:at]
        text, reasoning, calls = read(golden, said)
        assert (text, reasoning, calls) == read(golden, [said])
        if len(calls) > 1 and not golden.name.startswith("Python's"):
            for _, arguments in calls[:-1]:
                json.loads(arguments)


_PIECES = sorted(
    {m for form in (*TOOL_FORMS.values(), *REASONING_FORMS.values()) for m in form.marks}
    | {"{", "}", "[", "]", '"', "\\", ":", ",", "(", ")", "=", " ", "\n", "'", "`", "```json", "é"}
    | {'"name"', '"arguments"', '"get_weather"', "get_weather", "city", "1", "true", "to=", "x"}
)
_FORMS = [(tools, "none") for tools in TOOL_FORMS] + [("hermes", r) for r in REASONING_FORMS]


NOTHING_DROPPED = ("hermes", "json", "glm4", "glm45", "qwen3-coder", "mistral")


@pytest.mark.parametrize("golden", GOLDEN, ids=named)
def test_what_is_cut_off_before_it_is_a_call_stays_text(golden: Golden) -> None:
    if golden.tools not in NOTHING_DROPPED or golden.thinks != "none" or golden.fields:
        return
    for at in range(len(golden.said)):
        text, _, calls = read(golden, golden.said[:at])
        assert calls or text == golden.said[:at]


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.sampled_from(_FORMS), st.lists(st.sampled_from(_PIECES), max_size=40), st.integers())
def test_any_text_however_it_is_cut(forms: tuple[str, str], parts: list[str], seed: int) -> None:
    said = "".join(parts)
    golden = Golden("", forms[0], said, thinks=forms[1])
    want = read(golden, [said])
    assert read(golden, parts) == want
    assert read(golden, said) == want
    if forms[0] in NOTHING_DROPPED and forms[1] == "none" and not want[2]:
        assert want[0] == said, "what is no call stays as it is"
    cuts, at = random.Random(seed), 0
    pieces = []
    while at < len(said):
        step = cuts.randint(1, 7)
        pieces.append(said[at : at + step])
        at += step
    assert read(golden, pieces) == want


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    st.booleans(),
)
def test_any_arguments_arrive(value: object, ascii_only: bool) -> None:
    arguments = {"city": value}
    body = {"name": "get_weather", "arguments": arguments}
    text = json.dumps(body, ensure_ascii=ascii_only)
    for tools, said in (
        ("hermes", f"<tool_call>{text}</tool_call>"),
        ("llama3", text),
        ("mistral", f"[TOOL_CALLS][{text}]"),
    ):
        _, _, calls = read(Golden("", tools, said), [said])
        assert [(n, json.loads(a)) for n, a in calls] == [("get_weather", arguments)]


DEEP = 100_000
HARM = {
    "deep object": '{"a":' * DEEP,
    "deep list": "[" * DEEP,
    "deep call": "<tool_call>" + '{"a":' * DEEP,
    "deep arguments, name last": '<tool_call>{"arguments":' + '{"a":' * DEEP,
    "marks": "<tool_call>" * (DEEP // 10),
    "half marks": "<tool_call" * (DEEP // 10),
    "python": "[get_weather(city=" + "[" * DEEP,
    "a name without end": "<tool_call>" + "x" * DEEP,
    "a string without end": '<tool_call>{"name": "' + "\\" * DEEP,
    "sections": "<｜tool▁call▁begin｜>" * (DEEP // 10),
    "space": "<tool_call>" + " " * DEEP,
    "fences": "```json" * (DEEP // 10),
    "mistral": "[TOOL_CALLS]" * (DEEP // 10),
    "headers": "<|channel|>" * (DEEP // 10),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_never_closes_falls_back_to_text(harm: str) -> None:
    for tools in TOOL_FORMS:
        said = HARM[harm][: None if tools in ("hermes", "json") else DEEP // 10]
        text, _, calls = read(Golden("", tools, said), [said])
        assert not calls
        if (tools, harm) != ("harmony", "headers"):
            assert text == said
    said = HARM[harm][:DEEP]
    pieces = [said[i : i + 5] for i in range(0, len(said), 5)]
    assert read(Golden("", "hermes", said), pieces) == (said, "", [])


class CountingTape(Tape):
    """Counts the characters that parsers read, those read again included."""

    reads = 0

    def read(self) -> Any:
        type(self).reads += 1
        return super().read()


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("tools", TOOL_FORMS)
def test_work_grows_with_the_length_only(
    harm: str, tools: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.runtime.text.reading.Tape", CountingTape)
    work = []
    for length in (2000, 4000):
        CountingTape.reads = 0
        said = HARM[harm][:length]
        read(Golden("", tools, said), said)
        work.append(CountingTape.reads)
    assert work[1] <= 2.3 * work[0] + 100
    assert work[1] <= 4 * 4000


def test_the_form_is_told_by_the_template() -> None:
    assert tool_form_of('… <tool_call>\n{"name": …') == "hermes"
    assert tool_form_of("<tool_call>{name}\n<arg_key>") == "glm45"
    assert tool_form_of("<tool_call>\n<function=") == "qwen3-coder"
    assert tool_form_of("[TOOL_CALLS]") == "mistral"
    assert tool_form_of("<|python_tag|>") == tool_form_of("Environment: ipython") == "llama3"
    assert tool_form_of("<｜tool▁calls▁begin｜>") == "deepseek-v3"
    assert tool_form_of("<|start|>assistant<|channel|>") == "harmony"
    assert tool_form_of("[func_name1(params_name1=") == "pythonic"
    assert tool_form_of(None) == "json"
    assert reasoning_form_of("{% if enable_thinking %}<think>") == "qwen3"
    assert reasoning_form_of("{{ content.split('</think>')[-1] }}") == "think"
    assert reasoning_form_of("<|channel|>") == "harmony"
    assert reasoning_form_of("{{ content }}") == "none"


def test_the_config_knows_every_form() -> None:
    assert set(get_args(ToolParser)) == {"auto", "none", *TOOL_FORMS}
    assert set(get_args(ReasoningParser)) == {"auto", "none", *REASONING_FORMS}


def test_a_form_can_be_set() -> None:
    assert Forms.choose("<tool_call>", "mistral", "none") == Forms("mistral", "none")
    assert Forms.choose("<tool_call>", "auto", "auto") == Forms("hermes", "none")
    with pytest.raises(UsageError, match="tool_parser"):
        Forms.choose(None, "hermez", "auto")
    with pytest.raises(UsageError, match="reasoning_parser"):
        Forms.choose(None, "auto", "hermes")
