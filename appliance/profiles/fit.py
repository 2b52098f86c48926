"""Weights, pages and workspace against memory: does it fit, how long a context, how many requests.

The engine sizes its page pool by what it measures; this is the estimate that is made before a
byte is loaded. It errs on the side of less.
"""

from __future__ import annotations

from msgspec import Struct

from appliance.errors import HardwareError
from appliance.hardware import Gpu, HardwareSnapshot
from appliance.profiles.footprint import CUDA_CONTEXT, footprint, kv_token_bytes
from appliance.runtime.config import RuntimeConfig
from appliance.runtime.plan import tp_sizes
from appliance.runtime.spec import ModelSpec

CPU_MOST_POOL = 8 << 30
SMALLEST_CONTEXT = 512
"""A pool of fewer tokens than this serves nobody."""
FP8_SM = 89
"""Compute capability from which linears are computed in 8-bit float."""


class GpuShare(Struct, frozen=True, rename={"memory_total": "memory_total_bytes"}):
    """One GPU of the run. others_bytes: in use before we come, by whoever."""

    index: int
    name: str
    memory_total: int
    others_bytes: int
    room_bytes: int
    """What weights, workspace and pages may take together."""
    holders: tuple[str, ...] = ()
    """`pid 4121 'python' holds 5.1 GB`, the largest first."""


class Fit(
    Struct,
    frozen=True,
    rename={"memory_total": "memory_total_bytes", "memory_free": "memory_free_bytes"},
):
    """Bytes are of one rank: the GPU with the least room, or the host's memory on a CPU.

    context: of the config, or what was asked for. longest_context: what one request can have.
    requests_at_context: how many requests of that length the pool holds at once.
    """

    fits: bool
    device: str
    weights_bytes: int
    """Parameters and the tables that stay beside them."""
    activations_bytes: int
    graphs_bytes: int
    workspace_bytes: int
    """Activations and graphs."""
    kv_bytes_per_token: int
    memory_total: int
    memory_free: int
    budget_bytes: int
    """What weights, workspace and pages may take together."""
    pool_bytes: int
    pool_tokens: int
    context: int
    longest_context: int
    requests_at_context: float
    tight: int = -1
    """Index of the GPU with the least room; -1 on a CPU."""
    holders: tuple[str, ...] = ()
    """Of the tight GPU."""
    gpus: tuple[GpuShare, ...] = ()

    def numbers(self) -> str:
        """`16.1 GB weights + 51.0 GB for 389,000 tokens of context on 80.0 GB`."""
        return (
            f"{gb(self.weights_bytes)} weights + {gb(self.pool_bytes)} for "
            f"{self.pool_tokens:,} tokens of context on {gb(self.memory_total)}"
        )

    def at_once(self) -> str:
        """`6.9 requests of full length`."""
        count = self.requests_at_context
        return (
            f"{count:.1f} requests of full length"
            if count < 20
            else (f"{int(count):,} requests of full length")
        )


def gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if abs(count) >= 1e8 else f"{count / 1e6:.1f} MB"


def fit(spec: ModelSpec, config: RuntimeConfig, hardware: HardwareSnapshot) -> Fit:
    """config: resolved (no `auto` left). HardwareError when it asks for GPUs that are not there."""
    tp, part = config.engine.tp, footprint(spec, config)
    shares: tuple[GpuShare, ...] = ()
    if config.engine.device == "cuda":
        shares = _shares(config, spec, hardware)
        tightest = min(shares, key=lambda g: g.room_bytes)
        total, free = tightest.memory_total, tightest.memory_total - tightest.others_bytes
        budget, tight, holders = tightest.room_bytes, tightest.index, tightest.holders
    else:
        ranks = tp * config.engine.replicas
        total, free = hardware.memory_total, hardware.memory_available
        tight, holders = -1, ()
        # the fraction is for the pool; weights and workspace may have the rest of what is free
        kept = min(int(free / ranks * config.engine.memory_fraction), CPU_MOST_POOL)
        budget = min(int(free / ranks), part.weights + part.workspace + kept)
    kv = kv_token_bytes(spec, config)
    pool = max(0, budget - part.weights - part.workspace)
    page = config.schedule.page_size
    tokens = pool // kv // page * page
    if config.engine.max_total_tokens:
        tokens = min(tokens, config.engine.max_total_tokens)
    context = config.model.context or spec.max_context
    # all slots at full context: more pages than that are of no use
    tokens = min(tokens, config.schedule.max_running * -(-context // page) * page)
    longest = min(spec.max_context, tokens)
    return Fit(
        fits=tokens >= min(SMALLEST_CONTEXT, spec.max_context),
        device=config.engine.device,
        weights_bytes=part.weights,
        activations_bytes=part.activations,
        graphs_bytes=part.graphs,
        workspace_bytes=part.workspace,
        kv_bytes_per_token=kv,
        memory_total=total,
        memory_free=free,
        budget_bytes=budget,
        pool_bytes=tokens * kv,
        pool_tokens=tokens,
        context=context,
        longest_context=longest,
        requests_at_context=tokens / max(1, min(context, longest)),
        tight=tight,
        holders=holders,
        gpus=shares,
    )


def _shares(
    config: RuntimeConfig, spec: ModelSpec, hardware: HardwareSnapshot
) -> tuple[GpuShare, ...]:
    tp, replicas, seen = config.engine.tp, config.engine.replicas, len(hardware.gpus)
    wanted = tp * replicas
    if seen < wanted:
        least = min((n for n in (1, 2, 4, 8) if n * replicas <= seen), default=0)
        sizes = tp_sizes(spec, seen // replicas)
        if not seen:
            cure = "Use `--profile cpu`."
        elif sizes and least:
            cure = f"Use `--tp {sizes[-1]}`, or fewer."
        else:
            cure = f"Use `--set engine.replicas={max(1, seen // tp)}`" + (
                "." if tp <= seen else f" and `--tp {tp_sizes(spec, seen)[-1]}`."
            )
        each = f" for each of {replicas} engines" if replicas > 1 else ""
        raise HardwareError(
            f"{tp} GPU{'s' if tp > 1 else ''}{each} are asked for and {seen} can be seen.",
            cure,
            code="APL-HW-003",
        )
    fraction = config.engine.memory_fraction
    return tuple(
        GpuShare(
            index=g.index,
            name=g.name,
            memory_total=g.memory_total,
            others_bytes=g.memory_used,
            room_bytes=max(0, int(g.memory_total * fraction) - g.memory_used - CUDA_CONTEXT),
            holders=_holders(g),
        )
        for g in hardware.gpus[:wanted]
    )


def _holders(gpu: Gpu) -> tuple[str, ...]:
    large = sorted(gpu.processes, key=lambda p: -p.memory_bytes)
    return tuple(
        f"pid {p.pid} '{p.name}' holds {gb(p.memory_bytes)}" for p in large if p.memory_bytes > 1e8
    )[:4]
