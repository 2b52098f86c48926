from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vocabularies import byte_level, sentence_pieces, word_pieces

from appliance.runtime.text.detokenize import WindowDetokenizer, make_detokenizer
from appliance.runtime.text.vocabulary import Vocabulary

BYTES = Vocabulary(byte_level(), {})
PIECES = Vocabulary(sentence_pieces(), {})
WORDS = Vocabulary(word_pieces(), {})

text = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(list(" a▁é東👋🏽\u200d\n")),
    max_size=60,
)


def cut(draw_cuts: list[int], ids: list[int]) -> list[list[int]]:
    edges = sorted({min(c, len(ids)) for c in draw_cuts} | {0, len(ids)})
    return [ids[a:b] for a, b in pairwise(edges)]


def streamed(vocabulary: Vocabulary, parts: list[list[int]], at_start: bool = True) -> str:
    reader = make_detokenizer(vocabulary, skip_special_tokens=True, at_start=at_start)
    return "".join(reader.feed(p) for p in parts) + reader.flush()


@pytest.mark.parametrize("vocabulary", [BYTES, PIECES], ids=["bytes", "pieces"])
@given(text=text, cuts=st.lists(st.integers(0, 80), max_size=20))
@settings(max_examples=150, deadline=None)
def test_any_cut_of_a_text_gives_the_whole_decode(
    vocabulary: Vocabulary, text: str, cuts: list[int]
) -> None:
    ids = vocabulary.encode(text, add_special_tokens=False)
    assert streamed(vocabulary, cut(cuts, ids)) == vocabulary.decode(ids, True)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_ids_of_byte_level_bpe_give_the_whole_decode(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, BYTES.size - 1), max_size=40))
    cuts = data.draw(st.lists(st.integers(0, 40), max_size=10))
    assert streamed(BYTES, cut(cuts, ids)) == BYTES.decode(ids, True)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_how_bytes_that_are_no_text_are_cut_does_not_matter(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, PIECES.size - 1), max_size=40))
    cuts = data.draw(st.lists(st.integers(0, 40), max_size=10))
    assert streamed(PIECES, cut(cuts, ids)) == streamed(PIECES, [ids])


@given(ids=st.lists(st.integers(0, 6), max_size=20), cuts=st.lists(st.integers(0, 20)))
@settings(max_examples=100, deadline=None)
def test_other_decoder_chains_go_through_the_window(ids: list[int], cuts: list[int]) -> None:
    assert isinstance(make_detokenizer(WORDS, True, True), WindowDetokenizer)
    assert streamed(WORDS, cut(cuts, ids)) == WORDS.decode(ids, True)


@given(ids=st.lists(st.integers(0, 255), max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_window_reads_byte_level_bpe_too(ids: list[int]) -> None:
    """Only texts that end in a whole character may move its window."""
    ids = BYTES.encode("größe 東京 👋🏽 " + "x" * len(ids), add_special_tokens=False)
    reader = WindowDetokenizer(BYTES, True)
    assert "".join(reader.feed([i]) for i in ids) + reader.flush() == BYTES.decode(ids, True)


def test_no_part_of_a_character_is_shown() -> None:
    for vocabulary in (BYTES, PIECES):
        ids = vocabulary.encode("日👋", add_special_tokens=False)
        reader = make_detokenizer(vocabulary, True, True)
        shown = [reader.feed([i]) for i in ids]
        assert "".join(shown) == "日👋" and "�" not in "".join(shown)


def test_a_leading_space_goes_only_where_nothing_stands_before() -> None:
    ids = PIECES.encode("the", add_special_tokens=False)
    assert streamed(PIECES, [ids], at_start=True) == "the"
    assert streamed(PIECES, [ids], at_start=False) == " the"


def test_special_tokens_are_shown_only_when_asked_for() -> None:
    end = BYTES.id_of("<|end|>")
    assert end is not None
    shown = make_detokenizer(BYTES, skip_special_tokens=False, at_start=True)
    hidden = make_detokenizer(BYTES, skip_special_tokens=True, at_start=True)
    assert (shown.feed([end]), hidden.feed([end])) == ("<|end|>", "")


def test_ids_outside_the_vocabulary_add_nothing() -> None:
    assert streamed(BYTES, [[10**9, -1]]) == ""


def test_tokens_are_spelled_with_their_bytes() -> None:
    first = BYTES.encode("👋", add_special_tokens=False)[0]
    shown, raw = BYTES.spell(first)
    assert raw and "👋".encode().startswith(raw)
    assert shown == "bytes:" + "".join(f"\\x{b:02x}" for b in raw)
    whole = BYTES.encode("a", add_special_tokens=False)[0]
    assert BYTES.spell(whole) == ("a", b"a")
