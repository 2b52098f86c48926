"""Keys and values of 8 bits: the tokens of transformers when it rounds K and V alike, whatever the
schedule; the scales of the checkpoint; how near the unrounded model; what the pool then takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from appliance.errors import IntegrityError
from appliance.profiles.footprint import kv_token_bytes
from appliance.runtime.config import ModelConfig, RuntimeConfig
from appliance.runtime.engine.kv import pool
from appliance.runtime.engine.load import kv_dtype
from appliance.runtime.model.parallel.mesh import Mesh
from appliance.runtime.model.registry import read_spec
from appliance.runtime.offline import Engine
from tests.reference import models

SETTINGS = {"model.dtype": "float32", "engine.device": "cpu", "engine.threads": 1,
            "engine.max_total_tokens": 20000, "schedule.max_running": 64}  # fmt: skip
GREEDY = {"max_tokens": 16, "temperature": 0.0, "ignore_eos": True}
DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
MARGIN = 0.004
"""Between the two best logits: a key within float32 rounding of a border of the format may fall to
either side, which moves logits by less than this."""


class Rounding:
    """transformers' attention with K and V rounded as the pages would."""

    def __init__(self) -> None:
        self.dtype = torch.float8_e4m3fn
        self.scales: dict[int, tuple[float, float]] = {}

    def rounded(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        most = torch.finfo(self.dtype).max
        return (x / scale).clamp(-most, most).to(self.dtype).float() * scale

    def __call__(self, module, query, key, value, mask, **rest):
        k_scale, v_scale = self.scales.get(module.layer_idx, (1.0, 1.0))
        key, value = self.rounded(key, k_scale), self.rounded(value, v_scale)
        return sdpa_attention_forward(module, query, key, value, mask, **rest)


ROUNDING = Rounding()
AttentionInterface.register("rounded-kv", ROUNDING)
AttentionMaskInterface.register("rounded-kv", sdpa_mask)


@pytest.fixture
def rounding() -> Iterator[Rounding]:
    yield ROUNDING
    ROUNDING.scales = {}


def clear(model, prompts) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Those prompts whose greedy path has a margin all along, and their answers."""
    answers = models.greedy(model, prompts, GREEDY["max_tokens"])
    kept = []
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        top = logits.topk(2, -1).values
        if float((top[:, 0] - top[:, 1]).min()) > MARGIN:
            kept.append((prompt, answer))
    assert len(kept) >= 8, "too many near ties: choose another seed"
    return [p for p, _ in kept], [a for _, a in kept]


@pytest.mark.parametrize("name,dtype", [("llama", "e4m3"), ("llama", "e5m2"), ("qwen3", "e4m3")])
def test_tokens_are_those_of_the_same_rounding(tmp_path, rounding, name, dtype):
    reference = models.make(tmp_path, name)
    rounding.dtype = DTYPES[dtype]
    reference.model.set_attn_implementation("rounded-kv")
    prompts, expected = clear(reference.model, models.prompts(4, 8))
    for cache, chunk, retract in ((True, 2048, 0), (False, 16, 0), (True, 16, 5)):
        settings = {**SETTINGS, "model.kv_dtype": dtype, "schedule.prefix_cache": cache,
                    "schedule.page_size": 4, "schedule.share_from": int(cache),
                    "schedule.chunk": chunk, "schedule.retract_every": retract}  # fmt: skip
        with Engine(tmp_path, settings) as engine:
            answers = engine.generate(prompts, GREEDY)
            stats = engine.scheduler.stats()
        assert [a.ids for a in answers] == expected
        assert (stats.retractions > 0) == bool(retract)
        assert (stats.cache_hit_tokens > 0) <= cache


def test_rounding_stays_near_the_model(tmp_path):
    reference = models.make(tmp_path, "llama")
    ids = models.prompts()[-1]
    want = models.logprobs(reference.model, list(ids))
    distance = {}
    for dtype in ("model", *DTYPES):
        with Engine(tmp_path, {**SETTINGS, "model.kv_dtype": dtype}) as engine:
            [answer] = engine.generate([ids], {"max_tokens": 1, "prompt_logprobs": 0})
        got = torch.tensor([p.logprob for p in answer.prompt_logprobs[1:]])
        distance[dtype] = float((got - want).abs().mean())
    assert distance["model"] < 1e-4
    assert 0 < distance["e4m3"] < 0.1
    assert distance["e4m3"] < distance["e5m2"] < 0.2


SCHEME = {"type": "float", "num_bits": 8, "strategy": "tensor", "dynamic": False}
NAMED = {
    "compressed-tensors": ("k_scale", "v_scale"),
    "modelopt": ("k_proj.k_scale", "v_proj.v_scale"),
    "older": ("k_proj.output_scale", "v_proj.output_scale"),
}


def calibrate(folder: Path, names: tuple[str, str], scales: dict[int, tuple[float, float]]) -> None:
    """Adds scales to the checkpoint and says so in its config."""
    extra = {
        f"model.layers.{layer}.self_attn.{name}": torch.tensor([scale])
        for layer, pair in scales.items()
        for name, scale in zip(names, pair, strict=True)
    }
    tensors = extra
    for file in folder.glob("model*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    quant = {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": SCHEME}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quant}))


@pytest.mark.parametrize("names", NAMED)
def test_the_scales_of_the_checkpoint_are_used(tmp_path, rounding, names):
    reference = models.make(tmp_path, "llama")
    # far apart and no powers of two, so that one taken for another, or left out, is seen
    scales = {0: (0.013, 0.37), 1: (0.0071, 0.11)}
    calibrate(tmp_path, NAMED[names], scales)
    assert read_spec(tmp_path).kv_scales
    rounding.dtype, rounding.scales = torch.float8_e4m3fn, scales
    ids = list(models.prompts()[-1])
    plain = models.logprobs(reference.model, ids)
    reference.model.set_attn_implementation("rounded-kv")
    want = models.logprobs(reference.model, ids)
    found = {}
    for dtype in ("auto", "e4m3"):
        with Engine(tmp_path, {**SETTINGS, "model.kv_dtype": dtype}) as engine:
            [answer] = engine.generate([ids], {"max_tokens": 1, "prompt_logprobs": 0})
        found[dtype] = torch.tensor([p.logprob for p in answer.prompt_logprobs[1:]])
    assert torch.allclose(found["auto"], plain, atol=1e-3)
    assert float((found["e4m3"] - want).abs().median()) < 1e-3
    assert float((want - plain).abs().median()) > 1e-3, "the rounding is not seen at all"


def test_a_scale_for_each_head_is_refused_only_where_it_is_needed(tmp_path):
    models.make(tmp_path, "llama")
    calibrate(tmp_path, NAMED["compressed-tensors"], {0: (0.1, 0.1), 1: (0.1, 0.1)})
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.k_scale"] = torch.tensor([0.1, 0.2])
    save_file(tensors, file)
    with Engine(tmp_path, SETTINGS):
        pass
    with pytest.raises(IntegrityError, match="one a head"):
        Engine(tmp_path, {**SETTINGS, "model.kv_dtype": "e4m3"})


def test_a_page_takes_a_byte_for_a_value(tmp_path):
    models.make(tmp_path, "llama")
    spec, mesh, cpu = read_spec(tmp_path), Mesh(0, 1), torch.device("cpu")
    taken = {}
    for name in ("model", *DTYPES):
        model = ModelConfig(path="", id="", dtype="bfloat16", kv_dtype=name)
        config = RuntimeConfig(run="", dir="", model=model)
        dtype = kv_dtype(config)
        layers = pool.allocate(spec, mesh, 16, 9, dtype, cpu)
        taken[name] = sum(layer.k.nbytes + layer.v.nbytes for layer in layers)
        assert taken[name] == 10 * pool.page_bytes(spec, mesh, 16, dtype)
        assert taken[name] == 160 * kv_token_bytes(spec, config)
    assert taken["model"] == 2 * taken["e4m3"] == 2 * taken["e5m2"]
