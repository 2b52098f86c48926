"""The names of models that are made for chats, and templates that an operator gives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tiny_vocabularies import byte_level, spec, write_folder

from appliance.errors import RequestError, UsageError
from appliance.runtime.text.siblings import chat_sibling
from appliance.runtime.text.template import read_template
from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.request import ids_from_bytes
from appliance.runtime.wire.text import AskedSampling, Chat, TextRequest


def ids(worker: TextWorker) -> list[int]:
    """Of a chat that says Hi."""
    chat = Chat([{"role": "user", "content": "Hi"}])
    request = TextRequest(rids=(1,), prompt=chat, sampling=AskedSampling())
    return ids_from_bytes(worker.tokenize_now(request, 512)[0].prompt).tolist()


@pytest.mark.parametrize(
    ("base", "sibling"),
    [
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen2.5-Coder-7B", "Qwen/Qwen2.5-Coder-7B-Instruct"),
        ("Qwen/Qwen1.5-14B", "Qwen/Qwen1.5-14B-Chat"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
        ("meta-llama/Meta-Llama-3-70B", "meta-llama/Meta-Llama-3-70B-Instruct"),
        ("LLM-Research/Llama-3.2-1B", "LLM-Research/Llama-3.2-1B-Instruct"),
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"),
        ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
        ("mistralai/Mistral-Nemo-Base-2407", "mistralai/Mistral-Nemo-Instruct-2407"),
        (
            "mistralai/Mistral-Small-3.1-24B-Base-2503",
            "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        ),
        ("google/gemma-3-4b-pt", "google/gemma-3-4b-it"),
        ("google/gemma-2-9b", "google/gemma-2-9b-it"),
        ("google/gemma-7b", "google/gemma-7b-it"),
        ("deepseek-ai/DeepSeek-V3-Base", "deepseek-ai/DeepSeek-V3"),
        ("deepseek-ai/deepseek-llm-7b-base", "deepseek-ai/deepseek-llm-7b-chat"),
        ("HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
        ("HuggingFaceTB/SmolLM3-3B-Base", "HuggingFaceTB/SmolLM3-3B"),
        ("tiiuae/Falcon3-7B-Base", "tiiuae/Falcon3-7B-Instruct"),
        ("tiiuae/falcon-40b", "tiiuae/falcon-40b-instruct"),
        ("ibm-granite/granite-3.3-8b-base", "ibm-granite/granite-3.3-8b-instruct"),
        ("allenai/OLMo-2-1124-7B", "allenai/OLMo-2-1124-7B-Instruct"),
        ("01-ai/Yi-1.5-9B", "01-ai/Yi-1.5-9B-Chat"),
        ("somebody/Model-7B-Base", "somebody/Model-7B-Instruct"),
        ("somebody/model-7b-base", "somebody/model-7b-instruct"),
        ("openai-community/gpt2", ""),
        ("meta-llama/Llama-3.1-8B-Instruct", ""),
        ("google/gemma-2-9b-it", ""),
        ("Qwen/Qwen3-4B-Thinking-2507", ""),
        ("my-base", ""),
        ("./my-base", ""),
        ("/models/of/ours/my-Base", ""),
    ],
)
def test_by_the_makers_names(base: str, sibling: str) -> None:
    assert chat_sibling(base) == sibling
    assert chat_sibling(sibling) == "" or not sibling.endswith(("-Instruct", "-it", "-Chat"))


def test_the_error_names_the_sibling_and_the_option(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level(), template=None)
    for model, says in (
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct;"),
        ("mine", "for chats; or"),
    ):
        with pytest.raises(RequestError) as e:
            ids(TextWorker(folder, spec(512), model))
        assert says in e.value.message and "--chat-template FILE" in e.value.message
        assert (e.value.status, e.value.code) == (400, "no_chat_template")


def test_a_template_that_is_given_goes_before_the_models_own(tmp_path: Path) -> None:
    given = tmp_path / "given.jinja"
    given.write_text("{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
    (tmp_path / "base").mkdir()
    (tmp_path / "chat").mkdir()
    for template, name in ((None, "base"), ("{{ messages[0]['content'] }}", "chat")):
        folder = write_folder(tmp_path / name, byte_level(), template=template)
        worker = TextWorker(folder, spec(512), "m", chat_template=str(given))
        assert ids(worker) == asyncio.run(worker.encode("<Hi>", add_special_tokens=False))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{% for m in messages %}{{ m.content }}", "line 1, is no Jinja template"),
        ("\n{{ messages[0 }}", "line 2, is no Jinja template"),
        ("  \n", "is empty"),
        (b"\xff\xfe", "it is not text"),
        (None, "No such file"),
    ],
)
def test_a_template_that_cannot_be_used(
    tmp_path: Path, text: str | bytes | None, says: str
) -> None:
    file = tmp_path / "t.jinja"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=says) as refused:
        read_template(file)
    assert refused.value.code == "APL-USE-045" and "--chat-template" in refused.value.hint


def test_what_transformers_adds_to_jinja_is_known(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(
        "{% for m in messages %}{%- generation %}{{ m }}{% endgeneration -%}{% break %}{% endfor %}"
    )
    assert read_template(file) == file.read_text()
