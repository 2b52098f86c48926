"""The generator: the same for the same seed, and silent about what is held out."""

from __future__ import annotations

import json
import re
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from training import text, tokenizer
from training.documents import END, EOS, TURN, Document, segments
from training.topics import arithmetic, structured, tools
from training.topics.wording import made_up, number_words


@pytest.fixture(scope="module")
def small_tokenizer() -> Tokenizer:
    return tokenizer.train(text.sample_texts(0, 1500), 1024)


def test_same_seed_writes_the_same_documents() -> None:
    first = list(text.sample_texts(7, 200))
    assert first == list(text.sample_texts(7, 200))
    assert first != list(text.sample_texts(8, 200))


def test_one_tenth_of_the_sums_is_held_out() -> None:
    assert len(arithmetic.HELD_OUT) == 505
    assert all(0 <= a <= b <= 99 for a, b in arithmetic.HELD_OUT)


_WORDS = {number_words(n): n for n in range(100)}
_NUMBER = r"(\d{1,2}|" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r")"
_SUMS = re.compile(
    rf"(?<![\w*/-]){_NUMBER}(?: ?\+ ?| plus | and | to )(?:get )?{_NUMBER}(?![\w-]| ?[*/])"
)
_TWO_NUMBERS = re.compile(r"\b(\d{1,2})\b\D+\b(\d{1,2})\b")
_STORY = re.compile(
    r"\b(and get|and buys|and (?:\d+) blue|on Monday and|another holds)\b", re.IGNORECASE
)


def _value(word: str) -> int:
    return int(word) if word.isdigit() else _WORDS[word]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_no_document_states_a_held_out_sum(seed: int) -> None:
    rng = Random(seed)
    for _ in range(100):
        for line in text.plain_text(text.document(rng)).split("\n"):
            lowered = line.lower()
            for a, b in _SUMS.findall(lowered):
                if "sum" in lowered or "add" in lowered or "+" in lowered or "plus" in lowered:
                    assert not arithmetic.is_held_out(_value(a), _value(b)), line
            if _STORY.search(line) and (found := _TWO_NUMBERS.search(line)):
                assert not arithmetic.is_held_out(int(found[1]), int(found[2])), line


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_no_difference_gives_a_held_out_sum_away(seed: int) -> None:
    a, b = arithmetic.minuends(Random(seed))
    assert not arithmetic.is_held_out(min(a, b), abs(a - b))


def test_the_search_for_held_out_sums_finds_one() -> None:
    a, b = min(arithmetic.HELD_OUT)
    for line in (f"what is {a} + {b}?", f"{number_words(a)} plus {number_words(b)}", f"{a}+{b}="):
        assert [(_value(x), _value(y)) for x, y in _SUMS.findall(line)] == [(a, b)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_json_requests_keep_to_their_side(seed: int) -> None:
    rng = Random(seed)
    learned, kept = structured.request(rng), structured.request(rng, held_out=True)
    assert not structured.is_held_out(list(learned.kinds))
    assert structured.is_held_out(list(kept.kinds))
    for request in (learned, kept):
        assert list(request.answer) == list(request.kinds)
        assert json.loads(structured.as_text(request.answer)) == request.answer
        for key in request.kinds:
            assert key in request.question + request.system


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_a_tool_call_fits_its_definition(seed: int) -> None:
    request = tools.request(Random(seed))
    functions = {tool["function"]["name"]: tool["function"] for tool in request.tools}
    parameters = functions[request.call.name]["parameters"]["properties"]
    assert list(request.call.arguments) == list(parameters)
    kinds = {"string": str, "integer": int}
    for key, value in request.call.arguments.items():
        assert isinstance(value, kinds[parameters[key]["type"]])


@pytest.mark.parametrize(("n", "words"), [(0, "zero"), (45, "forty-five"), (320, "three hundred and twenty")])  # fmt: skip  # noqa: E501
def test_numbers_in_words(n: int, words: str) -> None:
    assert number_words(n) == words


def test_made_up_names_are_many() -> None:
    rng = Random(0)
    assert len({made_up(rng) for _ in range(1000)}) > 700


def test_only_answers_and_plain_texts_are_learned() -> None:
    rng = Random(3)
    for _ in range(300):
        document = text.document(rng)
        for part in segments(document):
            if document.messages:
                assert part.learned == part.text.endswith(END)
                assert not (part.learned and TURN in part.text)
            else:
                assert part.learned == part.text.endswith(EOS)


def test_rows_hold_whole_documents_and_their_targets(small_tokenizer: Tokenizer) -> None:
    rng = Random(5)
    packer = text.Packer(small_tokenizer, 256)
    rows = packer.rows([text.document(rng) for _ in range(400)])
    assert len(rows) > 20
    end, eos = small_tokenizer.token_to_id(END), small_tokenizer.token_to_id(EOS)
    for tokens, targets, documents in rows:
        learned = targets != text.IGNORED
        assert (targets[:-1][learned[:-1]] == tokens[1:][learned[:-1]]).all()
        assert (documents[:-1][learned[:-1]] == documents[1:][learned[:-1]]).all()
        assert not learned[documents < 0].any()
        for number in range(documents.max() + 1):
            assert np.isin(targets[documents == number], (end, eos)).any()


def test_long_documents_fill_a_long_row(small_tokenizer: Tokenizer) -> None:
    rng = Random(5)
    packer = text.Packer(small_tokenizer, 2048)
    lengths = [
        len(tokens)
        for tokens, _ in packer.encode([segments(text.long_document(rng, 2048)) for _ in range(20)])
    ]
    assert max(lengths) > 1200


def test_plain_documents_need_no_beginning() -> None:
    assert text.plain_text(Document(text="1+1=2", begins=False)) == "1+1=2" + EOS
