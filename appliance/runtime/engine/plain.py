"""What is left where kernels cannot be compiled: plain torch, which computes everything, slowly."""

from __future__ import annotations

from msgspec.structs import replace

from appliance.runtime.config import RuntimeConfig


class NotCompiledError(Exception):
    """A kernel that comes as source cannot be compiled on this machine."""


def first_line(error: Exception) -> str:
    """What an error says, shortly: compilers say much."""
    said = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, said), '')}"[:300]


def in_plain_torch(config: RuntimeConfig) -> RuntimeConfig:
    """As config, with nothing that is compiled."""
    engine = replace(
        config.engine, attention="reference", filter="sort", fuse_rounding=False, graphs=False,
        graph_batch_sizes=(), few_rows=False, even_decode=False,
    )  # fmt: skip
    return replace(config, engine=engine)
