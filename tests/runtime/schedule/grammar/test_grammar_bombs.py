"""Small grammars that would take a machine with them cost their sender one error."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance import paths
from appliance.errors import RequestError
from appliance.runtime.offline import Engine
from appliance.runtime.schedule.grammar.box import Box
from appliance.runtime.schedule.grammar.compile import Refused, Words
from appliance.runtime.schedule.grammar.shelf import Order, Shelf
from appliance.runtime.text.vocabulary import Vocabulary
from appliance.runtime.wire.request import Grammar

SETTINGS = {"engine.threads": 1, "schedule.max_running": 16, "engine.max_total_tokens": 16000}
PLAIN = Grammar("regex", "[a-z]{3}")


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _schema(value: object) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


COMPILE = {
    "optional properties": _schema(
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}}
    ),
    "nested objects": _schema(_nested(300)),
    "brackets": Grammar("json_schema", "[" * 100_000),
    "a long literal": Grammar("regex", "a" * 250_000),
    "parentheses": Grammar("regex", "(" * 5000 + "a" + ")" * 5000),
    "all of any of": _schema(
        {
            "allOf": [
                {"anyOf": [{"properties": {f"{i}{j}": {"type": "integer"}}} for j in range(9)]}
                for i in range(9)
            ]
        }
    ),
}


@pytest.fixture(scope="module")
def words() -> Words:
    vocabulary = Vocabulary.load(paths.default_model())
    return Words(vocabulary.spelled(), lambda text: vocabulary.encode(text, False))


@pytest.fixture(scope="module")
def box(words: Words) -> Iterator[Box]:
    made = Box(words, 3072)
    yield made
    made.close()


@pytest.mark.parametrize("name", COMPILE)
def test_a_bomb_at_compile_time_is_refused_and_the_next_is_served(box: Box, name: str) -> None:
    with pytest.raises(Refused) as refused:
        box.compile(COMPILE[name])
    assert refused.value.code in ("grammar_too_complex", "grammar_invalid")
    assert box.compile(PLAIN).library == "xgrammar"


def test_a_long_counted_repeat_is_no_bomb(box: Box) -> None:
    assert box.compile(Grammar("regex", ".{0,500}")).library == "llguidance"
    with pytest.raises(Refused):
        box.compile(Grammar("regex", "((a{1,999}){1,999}){1,999}(b|"))
    assert box.compile(Grammar("regex", "[a-z]{0,9}")).library == "xgrammar"


def test_memory_is_bounded(words: Words) -> None:
    box = Box(words, 3072, limit_s=30.0, memory=4 << 20)
    try:
        with pytest.raises(Refused) as refused:
            box.compile(_schema({"enum": [f"value {i:07}" for i in range(20_000)]}))
        assert refused.value.code == "grammar_too_complex"
    finally:
        box.close()


def test_a_box_that_dies_is_started_again(box: Box) -> None:
    assert box.compile(PLAIN)
    assert box._child is not None
    box._child.kill()
    box._child.wait()
    assert box.compile(PLAIN)


@pytest.mark.parametrize("rule", ['s ::= s s | "a"', 's ::= s s s | s s | "a" | "aa"'])
def test_a_bomb_at_run_time_ends_its_own_request(rule: str) -> None:
    with Engine(None, SETTINGS) as engine:
        free = {"max_tokens": 80, "temperature": 0.0, "ignore_eos": True}
        alone = engine.generate("Hello", free).ids
        bomb = engine.stream(
            "Hello",
            {"max_tokens": 1500, "grammar": Grammar("ebnf", f"root ::= s\n{rule}"),
             "logit_bias": ((66, 5.0),), "ignore_eos": True},
        )  # fmt: skip
        bomb.begin()
        assert engine.generate("Hello", free).ids == alone
        with pytest.raises(RequestError) as told:
            bomb.whole()
        assert told.value.code == "grammar_too_slow"
        assert engine.generate("Hello", free).ids == alone


def test_expressions_that_backtrack_elsewhere() -> None:
    """They end in time one way or the other: an answer or an error."""
    with Engine(None, SETTINGS) as engine:
        for expression in ("(a+)+$", "(.*a){25}", "((a{0,9}){0,9}){0,9}"):
            grammar = Grammar("regex", expression)
            try:
                engine.generate("Hello", {"max_tokens": 48, "grammar": grammar})
            except RequestError as e:
                assert e.code.startswith("grammar_")
        assert engine.generate("Hello", {"max_tokens": 4, "ignore_eos": True}).ids


class _Counted:
    """A box that counts what it is asked."""

    def __init__(self, box: Box) -> None:
        self.box, self.asked = box, 0
        self.compiled = threading.Semaphore(0)

    def compile(self, grammar: Grammar) -> Any:
        self.asked += 1
        return self.box.compile(grammar)

    def end(self) -> None:
        pass

    def close(self) -> None:
        pass


def _wait(order: Order, until: Callable[[], bool]) -> Order:
    pause = threading.Event()
    while not until():
        pause.wait(0.005)
    return order


def test_a_grammar_is_compiled_once_and_forgotten_last(words: Words, box: Box) -> None:
    counted = _Counted(box)
    shelf = Shelf(3072, lambda: words, lambda *_: counted, capacity=20_000)  # type: ignore[arg-type,return-value]
    try:
        first = shelf.ask(PLAIN)
        _wait(first, lambda: first.done)
        assert shelf.ask(Grammar("regex", "[a-z]{3}", after=(7,))) is first
        wrong = shelf.ask(Grammar("regex", "("))
        _wait(wrong, lambda: wrong.done)
        assert wrong.refused is not None and shelf.ask(Grammar("regex", "(")) is wrong
        assert counted.asked == 2
        for i in range(12):
            other = shelf.ask(Grammar("regex", f"[a-z]{{{i + 4}}}"))
            _wait(other, lambda other=other: other.done)
        assert shelf.ask(PLAIN) is not first
    finally:
        shelf.close()
