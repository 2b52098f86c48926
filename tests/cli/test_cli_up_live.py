"""`up -d --wait` with the real runtime and a tiny made-up model."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from appliance import paths
from appliance.client import Client
from appliance.errors import NotRunningError
from appliance.supervisor.claim import held

Cli = Callable[..., Any]

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}


@pytest.fixture
def tiny(own_home: Path) -> Iterator[Path]:
    folder = own_home / "tiny"
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=258,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = SHAPE | {"vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(shape))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    yield folder
    run = paths.runtime_dir() / "default"
    if held(run):
        Client(paths.control_socket(run)).down(0.0)


def up(cli: Cli, model: Path, *more: str) -> Any:
    return cli("up", str(model), "--load-format", "dummy", "--port", "0", "-d", "--wait=120", *more)


@pytest.mark.slow
def test_up_serves_survives_and_goes_down(cli: Cli, tiny: Path) -> None:
    said = up(cli, tiny, "--json")
    assert said.code == 0, said.err
    status = json.loads(said.out)
    assert (status["state"], status["model"], status["profile"]) == ("ready", "tiny", "cpu")
    roles = [(p["role"], p["rank"]) for p in status["processes"]]
    assert roles[0] == ("supervisor", None) and roles[-1] == ("engine", 0)
    assert ("frontend", None) in roles
    light = [p for p in status["processes"] if p["role"] != "engine"]
    assert all(p["memory_bytes"] < 150e6 for p in light), light
    words = ["run", "hello", "--max-tokens", "5", "--temperature", "0", "--json"]
    first = json.loads(cli(*words).out)
    assert first["usage"]["completion_tokens"] <= 5
    assert up(cli, tiny).code == 11
    engine = next(p["pid"] for p in status["processes"] if p["role"] == "engine")
    os.kill(engine, signal.SIGKILL)
    again = json.loads(cli(*words).out)  # waits for the engine to come back
    assert again["text"] == first["text"]
    assert json.loads(cli("status", "--json").out)["restarts"] == 1
    top = json.loads(cli("top", "--once", "--json").out)
    assert top["kv"]["total_tokens"] > 0
    assert cli("down", "-t", "5").code == 0
    assert cli("status").code == 3


@pytest.mark.slow
def test_what_cannot_start_is_told_and_leaves_nothing(cli: Cli, tiny: Path) -> None:
    (tiny / "tokenizer.json").write_text("{")
    said = up(cli, tiny)
    assert said.code == 2
    assert "tokenizer.json cannot be read" in said.err
    assert "Its log:" in said.err
    end = time.monotonic() + 5
    while held(paths.runtime_dir() / "default") and time.monotonic() < end:
        time.sleep(0.02)
    with pytest.raises(NotRunningError):
        Client(paths.control_socket(paths.runtime_dir() / "default")).status()
