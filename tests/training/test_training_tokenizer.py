"""The tokenizer's files, read by transformers, and the template against the generator's words."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from training import text, tokenizer
from training.documents import CALL, END, Message, ToolCall, chat, segments
from training.topics import tools


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return tokenizer.train(text.sample_texts(0, 1500), 1024)


@pytest.fixture(scope="module")
def loaded(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(trained, folder, 2048)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=200, deadline=None)
@given(said=st.text(max_size=80))
def test_any_text_comes_back(trained: Tokenizer, said: str) -> None:
    ids = trained.encode(said, add_special_tokens=False).ids
    assert trained.decode(ids, skip_special_tokens=False) == said


def test_digits_stand_alone(trained: Tokenizer) -> None:
    pieces = trained.encode("12345 and 67+89=", add_special_tokens=False).tokens
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("123456789")


def test_same_texts_same_tokenizer(trained: Tokenizer) -> None:
    again = tokenizer.train(text.sample_texts(0, 1500), 1024)
    assert again.get_vocab() == trained.get_vocab()


def test_calls_stay_visible_and_turns_do_not(loaded: Any) -> None:
    ids = loaded.encode(f"{CALL}\nhello{END}", add_special_tokens=False)
    assert loaded.decode(ids, skip_special_tokens=True) == f"{CALL}\nhello"
    assert loaded.eos_token == END


def test_encoding_adds_no_tokens(loaded: Any) -> None:
    assert loaded("hello").input_ids == loaded("hello", add_special_tokens=False).input_ids


def test_template_says_what_training_showed(loaded: Any) -> None:
    rng = Random(11)
    seen_tools = 0
    for _ in range(400):
        document = text.document(rng)
        if not document.messages:
            continue
        seen_tools += bool(document.tools)
        rendered = loaded.apply_chat_template(
            [message.as_openai() for message in document.messages],
            tools=list(document.tools) or None,
            tokenize=False,
        )
        assert rendered == text.plain_text(document)
    assert seen_tools > 5


def test_template_opens_the_answer_like_training(loaded: Any) -> None:
    request = tools.request(Random(2))
    for document in (chat("Hello", system="Be brief."), chat("Hi", "Hello!", "Bye")):
        rendered = loaded.apply_chat_template(
            [message.as_openai() for message in document.messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        assert rendered == "".join(s.text for s in segments(document, prompt=True))
    assert request.call.text().startswith(CALL)


def test_segments_cut_no_token_in_two(trained: Tokenizer) -> None:
    rng = Random(4)
    packer = text.Packer(trained, 512)
    for _ in range(200):
        parts = segments(text.document(rng))
        ((ids, _),) = packer.encode([parts])
        whole = trained.encode("".join(p.text for p in parts), add_special_tokens=False).ids
        assert ids == whole


def test_template_takes_what_clients_send(loaded: Any) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Rome?"}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": '{"temp": 20}'},
    ]
    rendered = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = [
        *segments(chat("Weather in Rome?", system="Be brief.")),
        *segments_of_call(),
    ]
    assert rendered == "".join(s.text for s in expected) + "<|im_start|>assistant\n"


def segments_of_call() -> list[Any]:
    from training.documents import Document

    call = Message("assistant", "", (ToolCall("get_weather", {"city": "Rome"}),))
    return segments(Document((call, Message("tool", '{"temp": 20}'))))
