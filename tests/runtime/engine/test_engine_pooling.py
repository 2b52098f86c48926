"""Embeddings are the last hidden state that transformers computes, whatever shares the batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from appliance.errors import UsageError
from appliance.runtime.model.registry import read_spec
from appliance.runtime.offline import Engine
from tests.reference import models

SETTINGS = {"model.dtype": "float32", "engine.device": "cpu", "engine.threads": 1,
            "engine.max_total_tokens": 4000, "schedule.max_running": 8,
            "schedule.chunk": 32}  # fmt: skip


def make_embedder(folder, **pooling):
    reference = models.make(folder, "qwen3", tie_word_embeddings=True)
    (folder / "1_Pooling").mkdir()
    said = pooling or {"pooling_mode_lasttoken": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    return reference


@torch.inference_mode()
def wanted(reference, ids) -> np.ndarray:
    state = reference.model.model(torch.tensor([list(ids)])).last_hidden_state[0, -1].numpy()
    return state / np.linalg.norm(state)


def test_embeddings_are_those_of_transformers(tmp_path):
    reference = make_embedder(tmp_path)
    prompts = models.prompts()[::5]
    with Engine(tmp_path, SETTINGS) as engine:
        first = engine.encode(prompts)
        again = engine.encode(prompts)  # most of each prompt now comes from the cache
        [text] = engine.generate([prompts[0]], {"max_tokens": 4, "temperature": 0.0})
    for ids, one, two in zip(prompts, first, again, strict=True):
        assert np.allclose(one, wanted(reference, ids), atol=1e-5)
        assert np.allclose(two, one, atol=1e-5)
    assert len(text.ids) == 4


def test_a_bare_decoders_checkpoint_is_read(tmp_path):
    reference = make_embedder(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        tensors = load_file(path)
        renamed = {k.removeprefix("model."): v for k, v in tensors.items() if k != "lm_head.weight"}
        save_file(renamed, path)
    index = tmp_path / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"] = {k.removeprefix("model."): v for k, v in said["weight_map"].items()}
    index.write_text(json.dumps(said))
    with Engine(tmp_path, SETTINGS) as engine:
        [one] = engine.encode([models.prompts()[3]])
    assert np.allclose(one, wanted(reference, models.prompts()[3]), atol=1e-5)


def test_other_poolings_and_generative_models_have_none(tmp_path):
    make_embedder(tmp_path, pooling_mode_mean_tokens=True)
    assert read_spec(tmp_path).pooling == ""
    with Engine(tmp_path, SETTINGS) as engine, pytest.raises(UsageError, match="embeddings"):
        engine.encode([(1, 2, 3)])
