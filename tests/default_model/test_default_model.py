"""The model that ships: its files, its size, and what it answers through transformers."""

from __future__ import annotations

import json
from random import Random

import pytest
import torch
from safetensors import safe_open

from appliance import paths
from training.documents import Document, chat
from training.evaluate import Asker, Question, held_out_sums, json_requests, tool_requests
from training.tokenizer import CHAT_TEMPLATE

FOLDER = paths.default_model()


@pytest.fixture(scope="module")
def asker() -> Asker:
    return Asker(FOLDER, dtype=torch.float32)


def _share(asker: Asker, asked: list[Question]) -> float:
    answers = asker.answers([question.document for question in asked])
    assert all(ended for _, ended in answers)
    return sum(q.right(said) for q, (said, _) in zip(asked, answers, strict=True)) / len(asked)


def test_files_are_small_and_standard() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 16_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_tokenizer_is_small_and_ends_turns() -> None:
    vocabulary = json.loads((FOLDER / "tokenizer.json").read_text())
    assert len(vocabulary["model"]["vocab"]) <= 8192
    config = json.loads((FOLDER / "tokenizer_config.json").read_text())
    assert config["chat_template"] == CHAT_TEMPLATE
    by_name = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [by_name["<|im_end|>"], by_name["<|eos|>"]]


def test_training_record_meets_its_goals() -> None:
    record = json.loads((FOLDER / "training.json").read_text())
    assert record["duration_s"] < 600
    assert record["held_out"]["missed"] == []
    assert record["loss_curve"][-1]["loss"] < record["loss_curve"][0]["loss"]


def test_held_out_sums(asker: Asker) -> None:
    assert _share(asker, held_out_sums(Random(1), 100)) >= 0.98


def test_held_out_json(asker: Asker) -> None:
    asked = [q for q in json_requests(Random(1), 60) if q.kind == "json_valid"]
    assert _share(asker, asked) >= 0.98


def test_tool_calls(asker: Asker) -> None:
    assert _share(asker, tool_requests(Random(1), 20)) >= 0.9


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (chat("Hello!"), "!"),
        (chat("What is the capital of France?"), "Paris"),
        (chat("what's the capital of japan"), "Tokyo"),
        (chat("What comes after Tuesday?"), "Wednesday"),
        (chat("Who are you?"), "appliance"),
        (chat("How do I pull a model?"), "appliance pull"),
        (chat("What colour is a banana?"), "yellow"),
        (chat("My name is Ada.", "Hello, Ada! What can I do for you?", "What is my name?"), "Ada"),
        (chat("Tell me a story about a fox."), "fox"),
        (chat("Explain the theory of strings."), "small"),
        (chat("What is 2 + 2?", system="You are a helpful assistant."), "4"),
    ],
)
def test_a_stranger_gets_an_answer(asker: Asker, asked: Document, words: str) -> None:
    ((said, ended),) = asker.answers([asked])
    assert ended
    assert words in said
