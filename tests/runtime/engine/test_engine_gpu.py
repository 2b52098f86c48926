"""On real GPUs: captured and eager passes agree with plain torch, and two ranks with one."""

from __future__ import annotations

import pytest
import torch

from appliance.runtime.offline import Engine
from tests.reference import models

pytestmark = pytest.mark.gpu

WIDE = {"hidden_size": 1024, "intermediate_size": 1408, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 128, "num_hidden_layers": 3,
        "max_position_embeddings": 1024}  # fmt: skip
EXACT = {"model.dtype": "float32", "engine.device": "cuda", "engine.max_total_tokens": 20000,
         "schedule.max_running": 64, "schedule.chunk": 64}  # fmt: skip
FAST = {"model.dtype": "bfloat16", "engine.device": "cuda", "engine.max_total_tokens": 60000,
        "schedule.max_running": 64,
        "engine.graph_batch_sizes": (1, 2, 4, 8, 16, 32, 64)}  # fmt: skip
GREEDY = {"max_tokens": 32, "temperature": 0.0, "ignore_eos": True}


def two_gpus() -> bool:
    return torch.cuda.is_available() and torch.cuda.device_count() >= 2


def assert_near(found, other) -> None:
    """Within what bfloat16 rounds: the first step's logprobs and ids, and most first 8 ids."""
    a, b = (torch.tensor([x.logprobs[0].logprob for x in answers]) for answers in (found, other))
    assert torch.allclose(a, b, atol=0.35)
    for length, share in ((1, 0.9), (8, 0.5)):
        same = sum(x.ids[:length] == y.ids[:length] for x, y in zip(found, other, strict=True))
        assert same >= share * len(found), (length, same)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_float32_gives_the_tokens_of_transformers(tmp_path, name):
    reference = models.make(tmp_path, name)
    prompts, expected = models.clear_cut(reference.model, 32)
    with Engine(tmp_path, EXACT) as engine:
        assert [a.ids for a in engine.generate(prompts, GREEDY)] == expected


def test_graphs_and_eager_agree(tmp_path):
    models.make(tmp_path, "llama", **WIDE)
    prompts = models.prompts()
    asked = {**GREEDY, "logprobs": 0}
    found = []
    for graphs in (True, False):
        with Engine(tmp_path, {**FAST, "engine.graphs": graphs}) as engine:
            found.append(engine.generate(prompts, asked))
    assert_near(*found)


def test_shared_pages_read_once(tmp_path):
    models.make(tmp_path, "llama", **WIDE)
    found = []
    for changes in ({}, {"schedule.share_from": 1}):
        with Engine(tmp_path, {**FAST, "schedule.page_size": 16, **changes}) as engine:
            found.append(engine.generate(models.prompts(), {**GREEDY, "logprobs": 0}))
    assert_near(*found)


def test_rounding_before_the_linears(tmp_path):
    models.make(tmp_path, "llama", **WIDE)
    found = []
    for fused in (False, True):
        settings = {**FAST, "model.quantization": "fp8", "engine.fuse_rounding": fused}
        with Engine(tmp_path, settings) as engine:
            found.append(engine.generate(models.prompts(), {**GREEDY, "logprobs": 0}))
    assert_near(*found)


@pytest.mark.parametrize("dtype", ["e4m3", "e5m2"])
def test_keys_of_8_bits_captured_eager_and_plain(tmp_path, dtype):
    models.make(tmp_path, "llama", **WIDE)
    found = []
    for changes in ({}, {"engine.graphs": False}, {"engine.attention": "reference"}):
        settings = {**FAST, "model.kv_dtype": dtype, **changes}
        with Engine(tmp_path, settings) as engine:
            found.append(engine.generate(models.prompts(), {**GREEDY, "logprobs": 0}))
    assert_near(found[0], found[1])
    assert_near(found[0], found[2])


@pytest.mark.skipif(not two_gpus(), reason="needs two GPUs")
@pytest.mark.parametrize("name,changes", [("llama", {"vocab_size": 301}), ("qwen3", {})])
def test_two_gpus_give_the_tokens_of_transformers(tmp_path, name, changes):
    reference = models.make(tmp_path, name, **changes)
    prompts, expected = models.clear_cut(reference.model, 32)
    with Engine(tmp_path, {**EXACT, "engine.tp": 2}) as engine:
        assert [a.ids for a in engine.generate(prompts, GREEDY)] == expected


@pytest.mark.skipif(not two_gpus(), reason="needs two GPUs")
def test_two_gpus_agree_with_one_in_captured_passes(tmp_path):
    models.make(tmp_path, "llama", **WIDE)
    prompts = models.prompts()
    found = []
    for tp in (1, 2):
        with Engine(tmp_path, {**FAST, "engine.tp": tp}) as engine:
            found.append(engine.generate(prompts, {**GREEDY, "logprobs": 0}))
    assert_near(*found)
