"""What is written under a JSON schema validates against it, whatever model writes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
from grammar_schemas import ALL
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from appliance import paths
from appliance.runtime.offline import Engine
from appliance.runtime.wire.request import Grammar

SETTINGS = {"engine.threads": 1, "schedule.max_running": 64, "engine.max_total_tokens": 40000}
FORMATS = jsonschema.FormatChecker(("uuid", "ipv4"))
PROMPTS = ("Answer in JSON: ", "A record of a city and its mayor.\n", "{")


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's tokenizer on weights that know nothing."""
    folder = tmp_path_factory.mktemp("random")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(paths.default_model() / name, folder)
    config = AutoConfig.from_pretrained(
        paths.default_model(),
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, dtype="float32",
    )  # fmt: skip
    set_seed(5)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("model,depth", [("embedded", 1), ("random", 0)])
def test_every_answer_validates(model: str, depth: int, random_model: Path) -> None:
    assert len(ALL) >= 200
    folder = None if model == "embedded" else random_model
    with Engine(folder, {**SETTINGS, "schedule.depth": depth}) as engine:
        answers = engine.generate(
            [PROMPTS[i % len(PROMPTS)] for i in range(len(ALL))],
            [
                {
                    "max_tokens": 400,
                    "temperature": 1.0 if i % 2 else 0.0,
                    "seed": i,
                    "grammar": Grammar("json_schema", json.dumps(s), any_whitespace=i % 4 == 3),
                }
                for i, s in enumerate(ALL)
            ],
        )
    whole = 0
    for schema, answer in zip(ALL, answers, strict=True):
        if answer.finish_reason == "length":
            continue
        assert answer.finish_reason == "stop"
        whole += 1
        try:
            jsonschema.validate(json.loads(answer.text), schema, format_checker=FORMATS)
        except ValueError as e:
            pytest.fail(f"{schema} gave {answer.text!r}: {e}")
    assert whole >= 0.97 * len(ALL)
