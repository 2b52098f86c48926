"""Machines and model shapes that the tests speak of."""

from __future__ import annotations

from typing import Any

from appliance.hardware import Gpu, GpuProcess, HardwareSnapshot

GIB = 1 << 30
MIB = 1 << 20


def machine(
    name: str = "", mib: int = 0, count: int = 1, *, sm: int = 90, used: int = 500 * MIB
) -> HardwareSnapshot:
    """A host of 16 cores and 128 GiB with `count` such GPUs; none without a name."""
    gpus = tuple(Gpu(i, f"GPU-{i}", name, mib * MIB, used, sm) for i in range(count if name else 0))
    return HardwareSnapshot(16, 128 * GIB, 120 * GIB, gpus, "580.95" if gpus else "")


def held(hardware: HardwareSnapshot, bytes_: int) -> HardwareSnapshot:
    """The same machine with `bytes_` of GPU 0 held by a stranger."""
    first = hardware.gpus[0]
    taken = Gpu(
        first.index,
        first.uuid,
        first.name,
        first.memory_total,
        bytes_,
        first.sm,
        processes=(GpuProcess(4121, "python", bytes_),),
    )
    return HardwareSnapshot(16, 128 * GIB, 120 * GIB, (taken, *hardware.gpus[1:]), "580.95")


H100 = machine("NVIDIA H100 80GB HBM3", 81559)
H100X8 = machine("NVIDIA H100 80GB HBM3", 81559, 8)
H200 = machine("NVIDIA H200", 143771)
A100 = machine("NVIDIA A100-SXM4-80GB", 81920, sm=80)
A100_40 = machine("NVIDIA A100-SXM4-40GB", 40960, sm=80)
RTX4090 = machine("NVIDIA GeForce RTX 4090", 24564, sm=89)
T4 = machine("Tesla T4", 15360, sm=75)
HOST = machine()


def llama(**changes: Any) -> dict[str, Any]:
    """config.json of the Llama-3.1-8B shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": 128000,
        "eos_token_id": 128009,
    } | changes


def llama_70b() -> dict[str, Any]:
    return llama(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64
    )
