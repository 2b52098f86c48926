"""The memory plan beside what an engine then has: three shapes, plain and in 8-bit float.

    python -m benchmarks.memory_plan [--append FILE]

For each, the plan that `appliance up` would show on this machine, and the facts of an engine that
was built of made-up weights: bytes of weights and workspace, tokens in the page pool; and what of
the memory that it may take is free once all passes are captured. One process each, so that every
plan finds the GPU empty.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from appliance.hardware import detect
from appliance.profiles.fit import fit
from appliance.runtime.config import ModelConfig, RuntimeConfig
from appliance.runtime.engine.rank import RankBuilder
from appliance.runtime.model.registry import spec_of
from appliance.runtime.plan import resolve
from benchmarks.serving import record

COMMON = {"torch_dtype": "bfloat16", "rms_norm_eps": 1e-5, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "intermediate_size": 14336, "vocab_size": 128256,
        "max_position_embeddings": 131072,
    },
    "qwen3-4b": {
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 2560, "num_hidden_layers": 36,
        "num_attention_heads": 32, "intermediate_size": 9728, "vocab_size": 151936,
        "head_dim": 128, "max_position_embeddings": 40960, "tie_word_embeddings": True,
    },
    "qwen3-14b": {
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 5120, "num_hidden_layers": 40,
        "num_attention_heads": 40, "intermediate_size": 17408, "vocab_size": 151936,
        "head_dim": 128, "max_position_embeddings": 40960,
    },
}  # fmt: skip


def compare(name: str, quantization: str, append: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="apl") as folder:
        shape = COMMON | SHAPES[name]
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        spec = spec_of(shape)
        model = ModelConfig(path=folder, id=name, load_format="dummy", quantization=quantization)
        hardware = detect()
        config = resolve(RuntimeConfig(run="plan", dir=folder, model=model), spec, hardware).config
        plan = fit(spec, config, hardware)
        built = RankBuilder(config, spec, 0, 0, None, lambda *_: None).build()
        while (capture := built.executor.chore(busy=False)) is not None:
            capture()
        facts = built.facts
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        spare = total * config.engine.memory_fraction - (total - free)
    tokens = facts["pages"] * facts["page_size"]
    off = plan.pool_tokens / tokens - 1
    print(
        f"{name:13} {quantization:4}  tokens: planned {plan.pool_tokens:9,} had {tokens:9,} "
        f"({100 * off:+.1f} %)   weights {plan.weights_bytes / 1e9:6.2f} / "
        f"{facts['weights_bytes'] / 1e9:6.2f} GB   workspace {plan.workspace_bytes / 1e9:5.2f} / "
        f"{facts['workspace_bytes'] / 1e9:5.2f} GB   graphs {plan.graphs_bytes / 1e9:5.2f} / "
        f"{facts['graph_bytes'] / 1e9:5.2f} GB   {facts['captured']} passes, "
        f"{spare / 1e9:.2f} GB of what is allowed are free then",
        flush=True,
    )
    if append:
        figures = {
            "pool_tokens_planned": plan.pool_tokens, "pool_tokens": tokens,
            "weights_bytes_planned": plan.weights_bytes, "weights_bytes": facts["weights_bytes"],
            "workspace_bytes_planned": plan.workspace_bytes,
            "workspace_bytes": facts["workspace_bytes"],
            "graphs_bytes_planned": plan.graphs_bytes, "graph_bytes": facts["graph_bytes"],
            "spare_bytes": int(spare),
        }  # fmt: skip
        record(append, "memory-plan", figures, model=name, quantization=quantization)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--append", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "QUANTIZATION"))
    given = parser.parse_args()
    if given.one:
        compare(*given.one, given.append)
        return 0
    failed = 0
    for name in SHAPES:
        for quantization in ("none", "fp8"):
            words = [sys.executable, "-m", "benchmarks.memory_plan", "--one", name, quantization]
            words += ["--append", str(given.append)] if given.append else []
            failed += subprocess.run(words, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
