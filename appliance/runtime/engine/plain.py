"""What is left where kernels cannot be compiled: plain torch, which computes everything, slowly."""

from __future__ import annotations

import torch
from msgspec.structs import replace

from appliance.runtime.config import RuntimeConfig


class NotCompiledError(Exception):
    """A kernel that comes as source cannot be compiled on this machine."""


_MEMORY_SHORT = ("CUDA error: out of memory", "[CUDA]: out of memory", "CUDA_ERROR_OUT_OF_MEMORY")
"""How libraries, Triton and the driver say so; torch's allocator has a type for it."""


def memory_short(error: Exception) -> bool:
    """Whether it was the GPU's memory that was too small, not the compiler that failed."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(s in said for s in _MEMORY_SHORT)


def first_line(error: Exception) -> str:
    """What an error says, shortly: compilers say much."""
    said = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, said), '')}"[:300]


def in_plain_torch(config: RuntimeConfig) -> RuntimeConfig:
    """As config, with nothing that is compiled."""
    engine = replace(
        config.engine, attention="reference", filter="sort", fuse_rounding=False, graphs=False,
        graph_batch_sizes=(), few_rows=False, even_decode=False, skinny=False,
    )  # fmt: skip
    return replace(config, engine=engine)
