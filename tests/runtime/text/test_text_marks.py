"""Answers as tokens: marks that are special tokens are read, and stay out of the text."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from golden_answers import TOOLS
from tiny_vocabularies import byte_level, sentence_pieces, spec, write_folder
from tokenizers import Tokenizer

from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.delta import TokenDelta
from appliance.runtime.wire.request import Grammar
from appliance.runtime.wire.text import AskedSampling, Chat, TextRequest

HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
SPECIAL = ["[TOOL_CALLS]", "<think>", "</think>", "<|other|>"]
CALL = '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "größe"}}]'
END = 1


def room(folder: Path, tokenizer: Tokenizer, template: str = "{{ '<|user|>' }}") -> TextWorker:
    tokenizer.add_special_tokens(SPECIAL)
    shape = spec(tokenizer.get_vocab_size())
    return TextWorker(
        write_folder(folder, tokenizer, template), shape,
        tool_parser="mistral", reasoning_parser="qwen3",
    )  # fmt: skip


def read(worker: TextWorker, said: str, cut: int, **fields: Any) -> tuple[str, str, str, int]:
    """Text, thoughts, arguments of all calls, and tokens of thought."""
    asked = {"calls": "model", "reasoning": "separate", "continues": False, **fields}
    chat = asked.pop("chat", Chat(HI, tools=TOOLS))
    request = TextRequest(rids=(1,), prompt=chat, sampling=AskedSampling(), **asked)
    tokens = asyncio.run(worker.tokenize(request, 512))[0]
    ids = [*asyncio.run(worker.encode(said, False)), END]
    stream = worker.stream(request, tokens)
    text, thoughts, arguments, count = "", "", "", 0
    for at in range(0, len(ids), cut):
        part = tuple(ids[at : at + cut])
        last = at + cut >= len(ids)
        delta = stream.feed(
            TokenDelta(1, at, part, "stop" if last else "", matched=END if last else -1)
        )
        text, thoughts = text + delta.text, thoughts + delta.reasoning
        arguments += "".join(c.arguments for c in delta.calls)
        count += delta.reasoning_tokens
    return text, thoughts, arguments, count


@pytest.mark.parametrize("make", [byte_level, sentence_pieces])
def test_special_marks_are_read_and_not_shown(tmp_path: Path, make: Any) -> None:
    worker = room(tmp_path, make(), "<s>")
    said = f"<think>ho ho</think>lo<|other|> the {CALL}"
    want = read(worker, said, 1)
    text, thoughts, arguments, count = want
    assert (text.split(), thoughts.split()) == (["lo", "the"], ["ho", "ho"])
    assert (json.loads(arguments), 0 < count < 10) == ({"city": "größe"}, True)
    for cut in (2, 3, 5, 100):
        assert read(worker, said, cut) == want


def test_the_words_of_a_mark_are_hidden_when_nobody_reads_them(tmp_path: Path) -> None:
    worker = room(tmp_path, byte_level())
    assert read(worker, f"a{CALL}", 1, calls="none")[0] == "a" + CALL.removeprefix("[TOOL_CALLS]")
    assert read(worker, "a<|other|>b", 1, skip_special_tokens=False)[0] == "a<|other|>b"


def test_a_stop_string_ends_an_answer_taken_apart(tmp_path: Path) -> None:
    worker = room(tmp_path, byte_level())
    assert read(worker, "<think>one</think>two STOP three", 1, stop=("STOP",))[:2] == (
        "two ",
        "one",
    )


@pytest.mark.parametrize(
    "template, variables, begins_behind",
    [
        ("<|assistant|><think>\n", {}, "</think>"),
        ("<|assistant|>", {}, "</think>"),
        ("<|assistant|>", {"enable_thinking": False}, None),
        ("<|assistant|><think>\n\n</think>\n\n", {}, None),
    ],
)
def test_a_grammar_waits_for_the_end_of_thoughts(
    tmp_path: Path, template: str, variables: dict[str, Any], begins_behind: str | None
) -> None:
    worker = room(tmp_path, byte_level(), template)
    chat = Chat(HI, variables=variables)
    grammar = Grammar("json_object")
    request = TextRequest((1, 2), chat, AskedSampling(), grammar=grammar)
    for tokens in asyncio.run(worker.tokenize(request, 512)):
        assert tokens.grammar is not None
        texts = [asyncio.run(worker.decode([i], False)) for i in tokens.grammar.after]
        assert texts == ([] if begins_behind is None else [begins_behind])
    plain = TextRequest((1,), "Hi", AskedSampling(), grammar=grammar)
    assert asyncio.run(worker.tokenize(plain, 512))[0].grammar == grammar


def test_a_template_may_show_calls_only_where_no_content_is(tmp_path: Path) -> None:
    template = (
        "{% if messages[0]['content'] is none %}{{ messages[0].tool_calls[0].function.name }}"
        "{% else %}{{ 'said ' + messages[0]['content'] }}{% endif %}"
    )
    worker = room(tmp_path, byte_level(), template)
    call = {"id": "1", "type": "function", "function": {"name": "w", "arguments": "{}"}}
    for content, shown in (("", "w"), ("so", "said so")):
        chat = Chat([{"role": "assistant", "content": content, "tool_calls": [call]}])
        ids = asyncio.run(worker.encode(chat, False))
        assert asyncio.run(worker.decode(ids, True)) == shown


def test_a_template_may_want_arguments_as_text(tmp_path: Path) -> None:
    template = "{{ 'a' + messages[0].tool_calls[0].function.arguments }}"
    worker = room(tmp_path, byte_level(), template)
    call = {"id": "1", "type": "function", "function": {"name": "w", "arguments": '{"x":"é"}'}}
    chat = Chat([{"role": "assistant", "content": "", "tool_calls": [call]}])
    ids = asyncio.run(worker.encode(chat, False))
    assert asyncio.run(worker.decode(ids, True)) == 'a{"x": "é"}'
