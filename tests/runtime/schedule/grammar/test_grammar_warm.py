"""The box is ready before the first grammar, and a stop does not wait for it to become so."""

from __future__ import annotations

import json
import threading

import pytest

from appliance.errors import EngineError
from appliance.runtime.schedule.grammar.box import Box
from appliance.runtime.schedule.grammar.compile import Compiled, Refused, Words
from appliance.runtime.schedule.grammar.shelf import Shelf
from appliance.runtime.wire.request import Grammar

LIMIT_S = 120.0


def words() -> Words:
    return Words([bytes([i]) for i in range(256)], lambda text: list(text.encode()))


class Told(Box):
    """Tells of each grammar that it compiles."""

    def __init__(self, words: Words, vocab: int) -> None:
        super().__init__(words, vocab)
        self.compiled: list[Grammar] = []
        self.news = threading.Condition()

    def compile(self, grammar: Grammar) -> Compiled:
        made = super().compile(grammar)
        with self.news:
            self.compiled.append(grammar)
            self.news.notify_all()
        return made

    def wait(self, count: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: len(self.compiled) >= count, LIMIT_S)


def shelf_of(boxes: list[Told], made: threading.Event) -> Shelf:
    def make(words: Words, vocab: int) -> Box:
        boxes.append(Told(words, vocab))
        made.set()
        return boxes[-1]

    return Shelf(256, words, make)


def test_both_libraries_are_tried_before_anybody_asks() -> None:
    boxes: list[Told] = []
    made = threading.Event()
    shelf = shelf_of(boxes, made)
    try:
        shelf.warm(0.0)
        assert made.wait(LIMIT_S)
        boxes[0].wait(2)
        order = shelf.ask(Grammar("json_schema", json.dumps({"type": "boolean"})))
        boxes[0].wait(3)
        assert len(boxes) == 1
        assert order.refused is None
    finally:
        shelf.close()


def test_a_grammar_that_comes_first_is_not_kept_waiting() -> None:
    asked: list[str] = []
    seen = threading.Event()

    class Refusing(Box):
        def compile(self, grammar: Grammar) -> Compiled:
            asked.append(grammar.kind)
            seen.set()
            raise Refused("no")

    shelf = Shelf(256, words, Refusing)
    try:
        shelf.warm(LIMIT_S)
        shelf.ask(Grammar("regex", "a"))
        assert seen.wait(LIMIT_S)
        assert asked == ["regex"]
    finally:
        shelf.close()


def test_a_stop_ends_the_child_that_is_still_loading() -> None:
    boxes: list[Told] = []
    shelf = shelf_of(boxes, made := threading.Event())
    shelf.warm(0.0)
    assert made.wait(LIMIT_S)
    shelf.close()
    assert not boxes[0].compiled
    with pytest.raises(EngineError, match="ended"):
        boxes[0].compile(Grammar("regex", "a"))
