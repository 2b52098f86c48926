"""Run by test_model_few_rows.py in a process of its own: the chained pass in triton's interpreter
against the decoder, on the same pages."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "reference"))

import models

from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig, ScheduleConfig
from appliance.runtime.engine.load import load_model
from appliance.runtime.model.attention.backend import RowTables
from appliance.runtime.model.batch import Batch, KVPages
from appliance.runtime.model.few_rows import FewRows, why_not
from appliance.runtime.model.parallel.comm import Solo
from appliance.runtime.model.parallel.mesh import Mesh
from appliance.runtime.model.quant import plain
from appliance.runtime.model.registry import read_spec

PAGE = 16
WIDE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 8}


def decode_batch(lengths: np.ndarray, table: torch.Tensor) -> tuple[Batch, RowTables]:
    """One token of each row at its position lengths - 1, and the rows' page lists."""
    rows = len(lengths)
    slots = torch.arange(rows, dtype=torch.int32)
    last = torch.from_numpy(lengths - 1)
    pages = -(-lengths // PAGE)
    own = table[torch.arange(rows), last // PAGE].long()
    batch = Batch(
        ids=torch.randint(0, models.VOCAB, (rows,)), positions=last,
        kv_rows=own * PAGE + last % PAGE, slots=slots,
        starts=(lengths - 1).astype(np.int32), lengths=np.ones(rows, dtype=np.int32),
        prefill_rows=0, prefill_tokens=0, page_table=table, page_size=PAGE,
    )  # fmt: skip
    indptr = torch.from_numpy(np.concatenate(([0], np.cumsum(pages))).astype(np.int32))
    indices = torch.cat([table[b, :p] for b, p in enumerate(pages)])
    return batch, RowTables(indptr, torch.ones(rows, dtype=torch.int32), indices)


@torch.inference_mode()
def agrees(name: str, folder: Path, quantization: str, bound: float) -> None:
    models.make(folder, name, **WIDE)
    spec = read_spec(folder)
    config = RuntimeConfig(
        run="r", dir="/tmp", schedule=ScheduleConfig(page_size=PAGE),
        engine=EngineConfig(device="cpu", attention="reference", graphs=False),
        model=ModelConfig(path=str(folder), id="t", dtype="float32",
                          quantization=quantization, context=256),
    )  # fmt: skip
    loaded = load_model(
        config, spec, Mesh(), Solo(), torch.device("cpu"), lambda _: None
    )  # fmt: skip
    assert why_not(loaded.model, spec, tp=1) == ""
    assert "several" in why_not(loaded.model, spec, tp=2)
    few = FewRows(loaded.model, spec, chained=False)
    heads, size = spec.attention.kv_heads, spec.attention.head_dim
    lengths = np.array([1, 17, 40])
    table = torch.randperm(3 * 4, dtype=torch.int32).view(3, 4)
    shape = (12, PAGE, heads, size)
    pages = [KVPages(torch.randn(shape), torch.randn(shape)) for _ in range(spec.layers)]
    for _ in range(2):
        batch, tables = decode_batch(lengths, table)
        other = [KVPages(p.k.clone(), p.v.clone()) for p in pages]
        want = loaded.model(batch, pages)
        got = few.run(batch, other, tables)
        error = float((got - want).norm() / want.norm())
        assert error < bound, (name, quantization, error)
        for mine, theirs in zip(other, pages, strict=True):
            for a, b in ((mine.k, theirs.k), (mine.v, theirs.v)):
                assert float((a - b).norm() / b.norm()) < bound
        lengths = lengths + 1


def main() -> None:
    plain.pack = lambda weight: None  # weights packed for a CPU are of no use to these kernels
    torch.manual_seed(0)
    for name in ("llama-rope3", "qwen3"):
        with tempfile.TemporaryDirectory() as folder:
            agrees(name, Path(folder), "none", 1e-5)
    with tempfile.TemporaryDirectory() as folder:  # the decoder rounds its tokens as well
        agrees("llama", Path(folder), "fp8", 0.15)
    for name, said in (("mistral-window", "window"), ("llama-tied-bias", "biases")):
        with tempfile.TemporaryDirectory() as folder:
            models.make(Path(folder), name, **WIDE)
            spec = read_spec(Path(folder))
            config = RuntimeConfig(
                run="r", dir="/tmp",
                engine=EngineConfig(device="cpu", attention="reference", graphs=False),
                model=ModelConfig(path=folder, id="t", dtype="float32", quantization="none",
                                  context=256),
            )  # fmt: skip
            loaded = load_model(config, spec, Mesh(), Solo(), torch.device("cpu"), lambda _: None)
            assert said in why_not(loaded.model, spec, tp=1)
    print("agrees")


if __name__ == "__main__":
    main()
