"""Vectors instead of tokens: embeddings, class scores and label probabilities are those that
transformers computes, whatever shares the batch and however the prompt is cut."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from appliance.errors import RequestError, UsageError
from appliance.runtime.model.registry import read_spec
from appliance.runtime.offline import Engine
from tests.reference import models

SETTINGS = {"model.dtype": "float32", "engine.device": "cpu", "engine.threads": 1,
            "engine.max_total_tokens": 4000, "schedule.max_running": 8,
            "schedule.chunk": 32}  # fmt: skip

MODULES = "sentence_transformers.models."


def make_embedder(folder, modules=(), **pooling):
    reference = models.make(folder, "qwen3", tie_word_embeddings=True)
    (folder / "1_Pooling").mkdir()
    said = pooling or {"pooling_mode_lasttoken": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    if modules:
        kinds = [{"idx": i, "type": MODULES + kind} for i, kind in enumerate(modules)]
        (folder / "modules.json").write_text(json.dumps(kinds))
    return reference


@torch.inference_mode()
def states(reference, ids) -> np.ndarray:
    return reference.model.model(torch.tensor([list(ids)])).last_hidden_state[0].numpy()


def wanted(reference, ids) -> np.ndarray:
    state = states(reference, ids)[-1]
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


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token"])
def test_other_poolings(tmp_path, mode):
    """Prompts longer than a chunk, some of them cached: the whole prompt counts all the same."""
    reference = make_embedder(tmp_path, **{f"pooling_mode_{mode}": True})
    prompts = [*models.prompts()[::9], models.prompts()[0]]
    with Engine(tmp_path, SETTINGS) as engine:
        engine.generate([prompts[-2]], {"max_tokens": 1})
        found = engine.encode(prompts)
    for ids, one in zip(prompts, found, strict=True):
        each = states(reference, ids)
        vector = each.mean(0) if mode == "mean_tokens" else each[0]
        assert np.allclose(one, vector / np.linalg.norm(vector), atol=1e-5)


def test_retracted_rows_begin_their_sum_again(tmp_path):
    reference = make_embedder(tmp_path, pooling_mode_mean_tokens=True)
    prompts = models.prompts()[40:56]
    cramped = {**SETTINGS, "engine.max_total_tokens": 160, "schedule.retract_every": 2}
    with Engine(tmp_path, cramped) as engine:
        found = engine.encode(prompts)
    for ids, one in zip(prompts, found, strict=True):
        mean = states(reference, ids).mean(0)
        assert np.allclose(one, mean / np.linalg.norm(mean), atol=1e-5)


def test_the_modules_say_whether_embeddings_are_normalized(tmp_path):
    reference = make_embedder(tmp_path, ("Transformer", "Pooling"), pooling_mode_lasttoken=True)
    ids = models.prompts()[3]
    with Engine(tmp_path, SETTINGS) as engine:
        [one] = engine.encode([ids])
    assert np.allclose(one, states(reference, ids)[-1], atol=1e-4)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": f"{MODULES}Normalize"}]))
    assert read_spec(tmp_path).normalizes
    (tmp_path / "modules.json").write_text(json.dumps([{"type": f"{MODULES}Dense"}]))
    assert read_spec(tmp_path).pooling == ""


@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "Qwen3Model"])
def test_a_bare_decoders_checkpoint_is_read(tmp_path, architecture):
    reference = make_embedder(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        tensors = load_file(path)
        renamed = {k.removeprefix("model."): v for k, v in tensors.items() if k != "lm_head.weight"}
        save_file(renamed, path)
    index = tmp_path / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"] = {k.removeprefix("model."): v for k, v in said["weight_map"].items()}
    index.write_text(json.dumps(said))
    config = json.loads((tmp_path / "config.json").read_text())
    changed = {**config, "architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with Engine(tmp_path, SETTINGS) as engine:
        [one] = engine.encode([models.prompts()[3]])
        if architecture == "Qwen3Model":
            with pytest.raises(RequestError, match="writes no text"):
                engine.generate("x")
    assert np.allclose(one, wanted(reference, models.prompts()[3]), atol=1e-5)


def test_what_is_not_served_has_no_embeddings(tmp_path):
    make_embedder(tmp_path, pooling_mode_weightedmean_tokens=True)
    assert read_spec(tmp_path).pooling == ""
    with Engine(tmp_path, SETTINGS) as engine, pytest.raises(UsageError, match="embeddings"):
        engine.encode([(1, 2, 3)])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral-window"])
def test_class_scores_are_those_of_transformers(tmp_path, family):
    reference = models.make_classifier(tmp_path, family, classes=3)
    spec = read_spec(tmp_path)
    assert spec.labels == ("bad", "fair", "good") and spec.activation == "softmax"
    prompts = models.prompts()[::7]
    usual = {"repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    (tmp_path / "generation_config.json").write_text(json.dumps(usual))
    with Engine(tmp_path, SETTINGS) as engine:
        found = engine.classify(prompts)
        again = engine.classify(prompts)
        with pytest.raises(RequestError, match="writes no text"):
            engine.generate("x")
    for ids, one, two in zip(prompts, found, again, strict=True):
        with torch.inference_mode():
            logits = reference.model(torch.tensor([list(ids)])).logits[0].numpy()
        assert np.allclose(one, logits, atol=1e-4) and np.allclose(two, one, atol=1e-5)


def test_label_probabilities_are_those_of_transformers(tmp_path):
    reference = models.make(tmp_path, "llama")
    query, items, labels = list(range(40, 90)), [[5, 6, 7], [8], list(range(100, 160))], [3, 250, 9]
    with Engine(tmp_path, SETTINGS) as engine:
        plain = engine.score(query, items, labels)
        shares = engine.score(query, items, labels, apply_softmax=True)
        turned = engine.score(query, items, labels, item_first=True)
        with pytest.raises(RequestError, match="0 to 299"):
            engine.score(query, items, [300])
        with pytest.raises(UsageError, match="head"):
            engine.classify([query])
    for i, item in enumerate(items):
        for found, ids in ((plain, query + item), (turned, item + query)):
            with torch.inference_mode():
                logits = reference.model(torch.tensor([ids])).logits[0, -1]
            assert np.allclose(found[i], logits.softmax(-1)[labels].numpy(), atol=1e-5)
        assert np.allclose(shares[i], np.array(plain[i]) / sum(plain[i]), atol=1e-5)
