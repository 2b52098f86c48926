"""Which models the kernel for few rows takes, from the loaded model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "reference"))

import models

from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig
from appliance.runtime.engine.load import load_model
from appliance.runtime.model.batch import KVPages
from appliance.runtime.model.few_rows import shape_of, why_not
from appliance.runtime.model.parallel.comm import Solo
from appliance.runtime.model.parallel.mesh import Mesh
from appliance.runtime.model.registry import read_spec

WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 128}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changed", "dtype", "tp", "capability", "said"),
    [
        ("llama", {}, "bfloat16", 1, (9, 0), ""),
        ("qwen3", {}, "bfloat16", 1, (10, 0), ""),
        ("llama", {}, "bfloat16", 1, (8, 9), "since Hopper"),
        ("llama", {}, "bfloat16", 2, (9, 0), "several GPUs"),
        ("llama", {}, "float32", 1, (9, 0), "not of bfloat16"),
        ("llama", {"head_dim": 64}, "bfloat16", 1, (9, 0), "heads are of 64"),
        ("llama", {"hidden_size": 256}, "bfloat16", 1, (9, 0), "hidden size 256"),
        ("qwen2", {}, "bfloat16", 1, (9, 0), "biases"),
    ],
)  # fmt: skip
def test_what_it_takes(
    name: str, changed: dict[str, int], dtype: str, tp: int, capability: tuple[int, int],
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    models.make(tmp_path, name, **(WIDE | changed))
    spec = read_spec(tmp_path)
    config = RuntimeConfig(
        run="r", dir="/tmp", engine=EngineConfig(device="cpu", attention="reference"),
        model=ModelConfig(path=str(tmp_path), id="t", dtype=dtype, quantization="none",
                          context=256),
    )  # fmt: skip
    loaded = load_model(config, spec, Mesh(), Solo(), torch.device("cpu"), lambda _: None)
    page = torch.zeros(1, 16, spec.attention.kv_heads, spec.attention.head_dim,
                       dtype=getattr(torch, dtype))  # fmt: skip
    pages = [KVPages(page, page)] * spec.layers
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    reason = why_not(loaded.model, spec, tp, pages, 16)
    assert said in reason if said else reason == ""
    if not said:
        shape = shape_of(loaded.model, spec, 16)
        assert shape.head_norm == (name == "qwen3") and not shape.narrow
