"""A text with a hole becomes a prompt by the marks of the vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_vocabularies import byte_level, spec, write_folder

from appliance.errors import RequestError
from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.request import ids_from_bytes
from appliance.runtime.wire.text import AskedSampling, Infill, TextRequest

MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


@pytest.mark.parametrize("marks", MARKS)
async def test_both_sides_and_the_marks(tmp_path: Path, marks: tuple[str, str, str]) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(list(marks))
    room = TextWorker(write_folder(tmp_path, tokenizer), spec(tokenizer.get_vocab_size()))
    prompt = Infill("Hello ", " there")
    [made] = await room.tokenize(TextRequest((1,), prompt, AskedSampling()), 512)
    ids = ids_from_bytes(made.prompt).tolist()
    text = await room.decode(ids, skip_special_tokens=False)
    before, after, middle = marks
    assert text == f"<|bos|>{before}Hello {after} there{middle}"
    room.close()


async def test_a_vocabulary_without_marks(tmp_path: Path) -> None:
    room = TextWorker(write_folder(tmp_path, byte_level()), spec(400))
    with pytest.raises(RequestError, match="filling in the middle") as refused:
        await room.encode(Infill("a", "b"), True)
    assert refused.value.param == "suffix"
    room.close()
