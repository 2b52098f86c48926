"""How far 8 bits, in every form that is read, may take the embedded model's answers: by plain torch
on a CPU, and by the kernels on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from appliance import paths
from benchmarks import accuracy, fp8_checkpoints
from benchmarks.accuracy import Forms, Settings, Text, Told

BASE: Settings = {"engine.threads": 1, "engine.max_total_tokens": 4000,
                  "schedule.max_running": 8}  # fmt: skip
BOUNDS = {
    "plain": 0.03,
    **dict.fromkeys(("online", "tensor", "fbgemm", "block", "kv-e4m3"), 0.12),
    **dict.fromkeys(("tensor-static", "kv-e5m2"), 0.17),
}
"""Mean distance of a token's log probability from the one in float32."""
TWINS = {"channel": "online", "modelopt": "tensor-static", "compressed-static": "tensor-static"}
"""Other files of what is computed alike: tests/runtime/model/test_model_fp8.py reads them."""


@pytest.fixture(scope="module")
def text() -> Text:
    return accuracy.text_of(paths.default_model(), [], 256, 9)


@pytest.fixture(scope="module")
def plain(text: Text) -> Told:
    settings = {**BASE, "model.dtype": "float32", "engine.device": "cpu"}
    return accuracy.told(paths.default_model(), text.first(8), settings, new=8)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", BOUNDS)
def test_every_form_stays_near_the_model(
    name: str, device: str, text: Text, plain: Told, tmp_path: Path
) -> None:
    model, settings = Forms(paths.default_model(), tmp_path, text.pieces[8:])[name]
    scored = text.first(8)
    base = {**BASE, "engine.device": device, "model.dtype": "bfloat16"}
    if device == "cuda":  # FlashInfer compiles for a minute for heads of 64
        base["engine.attention"] = "reference"
    found = accuracy.told(model, scored, {**base, **settings}, new=8)
    of_model = accuracy.distance(plain, plain, scored)
    d = accuracy.distance(found, plain, scored)
    assert (of_model.mean, of_model.same) == (0.0, 8.0)
    assert BOUNDS[name] / 5 < d.mean < BOUNDS[name]
    assert d.answers_mean < 0.02
    assert d.answers_perplexity == pytest.approx(of_model.answers_perplexity, rel=0.01)


def test_every_form_has_a_bound() -> None:
    assert set(Forms.names) == BOUNDS.keys() | TWINS.keys()


def test_filling_up_to_whole_blocks_changes_no_value() -> None:
    torch.manual_seed(0)
    names = ("gate_proj", "up_proj", "down_proj")
    shapes = ((200, 256), (200, 256), (256, 200))
    tensors = {
        f"model.layers.0.mlp.{n}.weight": torch.randn(s) for n, s in zip(names, shapes, strict=True)
    }
    config = {"intermediate_size": 200}
    x = torch.randn(3, 256)

    def answer() -> torch.Tensor:
        gate, up, down = (tensors[f"model.layers.0.mlp.{n}.weight"] for n in names)
        return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    before = answer()
    fp8_checkpoints.whole_blocks(tensors, config)
    assert config["intermediate_size"] == 256
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (256, 256)
    assert torch.allclose(answer(), before, atol=1e-3)


def test_a_fixed_scale_is_that_of_the_largest_token(text: Text) -> None:
    scales = fp8_checkpoints.input_scales(paths.default_model(), [text.pieces[0][:32]])
    more = fp8_checkpoints.input_scales(paths.default_model(), [text.pieces[0]])
    assert scales.keys() == more.keys() and "model.layers.4.mlp.down_proj" in scales
    assert all(0 < scales[name] <= more[name] for name in scales)
