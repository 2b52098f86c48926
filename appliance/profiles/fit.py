"""Weights, pages and workspace against memory: does it fit, how long a context, how many requests.

The engine sizes its page pool by what it measures; this is the estimate that is made before a
byte is loaded. It errs on the side of less.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from appliance.errors import ApplianceError, DoesNotFitError, HardwareError
from appliance.hardware import Gpu, HardwareSnapshot
from appliance.profiles.footprint import CUDA_CONTEXT, DTYPE_BYTES, footprint, kv_token_bytes
from appliance.profiles.known import IDLE_MIB, KNOWN, machine_of
from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig
from appliance.runtime.plan import Answer, Plan, resolve
from appliance.runtime.spec import ModelSpec

CPU_MOST_POOL = 8 << 30
SMALLEST_CONTEXT = 512
"""A pool of fewer tokens than this serves nobody."""
FP8_SM = 89
"""Compute capability from which linears are computed in 8-bit float."""
_LEAST_CHUNK, _LEAST_RUNNING = 1024, 64
"""What is advised where a smaller workspace makes the model fit."""


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


def gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if abs(count) >= 1e8 else f"{count / 1e6:.1f} MB"


def fit(spec: ModelSpec, config: RuntimeConfig, hardware: HardwareSnapshot) -> Fit:
    """config: resolved (no `auto` left). HardwareError when it asks for GPUs that are not there."""
    tp, part = config.engine.tp, footprint(spec, config)
    shares: tuple[GpuShare, ...] = ()
    if config.engine.device == "cuda":
        shares = _shares(config, hardware)
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


def limit_context(
    plan: Plan, spec: ModelSpec, hardware: HardwareSnapshot, asked: bool
) -> tuple[Plan, Fit]:
    """The plan with a context that memory can hold, and its fit.

    asked: the user named the context. Then one that is too long is refused, else it is shortened.
    DoesNotFitError says by how much, and what would fit.
    """
    result = fit(spec, plan.config, hardware)
    if not result.fits:
        raise _does_not_fit(result, plan.config, spec, hardware)
    if result.context <= result.longest_context:
        return plan, result
    longest = result.longest_context
    if asked:
        raise DoesNotFitError(
            f"a context of {result.context:,} tokens does not fit {plan.config.model.id} here.\n"
            f"{result.numbers()}; one token takes {result.kv_bytes_per_token:,} bytes.",
            "\n".join(
                [
                    f"Use `--context {longest}`, the longest that fits.",
                    *ways_to(spec, plan.config, hardware, result.context),
                ]
            ),
            code="APL-FIT-003",
        )
    config = msgspec.structs.replace(
        plan.config, model=msgspec.structs.replace(plan.config.model, context=longest)
    )
    why = f"memory holds {longest:,} of the model's {spec.max_context:,} tokens"
    answers = tuple(
        Answer(a.field, longest, "rule", why) if a.field == "model.context" else a
        for a in plan.answers
    )
    return Plan(config, answers), msgspec.structs.replace(
        result, context=longest, requests_at_context=result.pool_tokens / longest
    )


def _shares(config: RuntimeConfig, hardware: HardwareSnapshot) -> tuple[GpuShare, ...]:
    wanted = config.engine.tp * config.engine.replicas
    if len(hardware.gpus) < wanted:
        seen = len(hardware.gpus)
        raise HardwareError(
            f"{config.engine.tp} GPUs for each of {config.engine.replicas} engine(s) are asked for "
            f"and {seen} can be seen.",
            f"Use `--tp {seen}` or fewer." if seen else "Use `--profile cpu`.",
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


def _does_not_fit(
    result: Fit, config: RuntimeConfig, spec: ModelSpec, hardware: HardwareSnapshot
) -> DoesNotFitError:
    where = f"GPU {result.tight}" if result.tight >= 0 else "this machine"
    why = (
        f"weights need {gb(result.weights_bytes)} and workspace {gb(result.workspace_bytes)}; "
        f"{where} has {gb(result.memory_total)}, of which {gb(result.memory_free)} are free"
    )
    if result.holders:
        why += f" ({', '.join(result.holders)})"
    fixes = ways_to(spec, config, hardware, 0)
    if not fixes:
        largest = max(0, result.budget_bytes - result.workspace_bytes) * 9 // 10
        count = largest // DTYPE_BYTES[config.model.dtype] / 1e9
        fixes.append(
            f"Serve a model of at most {count:.1f} billion weights in {config.model.dtype} here."
        )
    elsewhere = machine_that_holds(spec, config)
    if elsewhere:
        fixes.append(elsewhere)
    return DoesNotFitError(
        f"{config.model.id} does not fit profile {config.profile}\n{why}.", "\n".join(fixes)
    )


def ways_to(
    spec: ModelSpec, config: RuntimeConfig, hardware: HardwareSnapshot, context: int
) -> list[str]:
    """Changes that make the model fit on this machine with a context of so many tokens (0: any);
    each one has been computed, so none leads to another refusal."""

    def holds(
        now: HardwareSnapshot = hardware,
        schedule: Any = None,
        quantization: str = config.model.quantization,
        **engine: Any,
    ) -> bool:
        changed = msgspec.structs.replace(
            config,
            model=msgspec.structs.replace(config.model, quantization=quantization),
            engine=msgspec.structs.replace(config.engine, **engine),
            schedule=schedule or config.schedule,
        )
        found = fit(spec, changed, now)
        return found.fits and found.longest_context >= context

    if config.engine.device != "cuda":
        return []
    ways = []
    wider = [tp for tp in divisors(spec, len(hardware.gpus)) if tp > config.engine.tp]
    for tp in wider:
        if holds(tp=tp, replicas=1):
            ways.append(f"Use `--tp {tp}`: {tp} of the {len(hardware.gpus)} GPUs hold it.")
            break
    if (
        spec.quant is None
        and config.model.quantization == "none"
        and min(g.sm for g in hardware.gpus) >= FP8_SM
        and holds(quantization="fp8")
    ):
        ways.append("Use `--set model.quantization=fp8`: weights in 8 bits, rounded as they load.")
    used = config.engine.tp * config.engine.replicas
    freest = sorted(hardware.gpus, key=lambda g: g.memory_used - g.memory_total)
    if {g.index for g in freest[:used]} != {g.index for g in hardware.gpus[:used]} and holds(
        msgspec.structs.replace(hardware, gpus=tuple(freest))
    ):
        numbers = ",".join(str(g.index) for g in sorted(freest[:used], key=lambda g: g.index))
        ways.append(f"Use `--gpus {numbers}`, where there is more room.")
    alone = msgspec.structs.replace(
        hardware,
        gpus=tuple(
            msgspec.structs.replace(g, memory_used=min(g.memory_used, IDLE_MIB << 20), processes=())
            for g in hardware.gpus
        ),
    )
    if any(g.processes for g in hardware.gpus) and holds(alone):
        ways.append("Stop what holds the GPU's memory, then run the same command.")
    schedule = msgspec.structs.replace(
        config.schedule,
        chunk=min(config.schedule.chunk, _LEAST_CHUNK),
        max_running=min(config.schedule.max_running, _LEAST_RUNNING),
    )
    sizes = tuple(s for s in config.engine.graph_batch_sizes if s <= _LEAST_RUNNING)
    if schedule != config.schedule and holds(schedule=schedule, graph_batch_sizes=sizes):
        listed = ",".join(map(str, sizes))
        graphs = f" --set engine.graph_batch_sizes={listed}" if sizes else ""
        ways.append(
            f"Use `--set schedule.chunk={schedule.chunk} --set schedule.max_running="
            f"{schedule.max_running}{graphs}`: less room for work, more for the model."
        )
    return ways


def divisors(spec: ModelSpec, most: int) -> list[int]:
    """Tensor-parallel sizes up to `most` that the model's heads can be shared out over."""
    a = spec.attention
    return [
        tp
        for tp in (1, 2, 4, 8)
        if tp <= most and a.heads % tp == 0 and (a.kv_heads % tp == 0 or tp % a.kv_heads == 0)
    ]


def machine_that_holds(spec: ModelSpec, config: RuntimeConfig) -> str:
    """The smallest machines of known GPUs that hold the model with what the rules give it there,
    by their words; or nothing."""
    if config.engine.device != "cuda":
        return ""
    found = []
    for gpu in KNOWN:
        for tp in divisors(spec, 8):
            machine = machine_of(gpu, tp)
            model = ModelConfig(path="", id="", context=config.model.context)
            if spec.quant is None and config.model.quantization == "fp8":
                model = msgspec.structs.replace(model, quantization="fp8")
            bare = RuntimeConfig(run="", dir="", model=model, engine=EngineConfig(tp=tp))
            try:
                resolved = resolve(bare, spec, machine).config
            except ApplianceError:
                break  # this GPU has no 8-bit float
            if fit(spec, resolved, machine).fits:
                found.append((tp * gpu.mib, f"{gpu.word}x{tp}"))
                break
    words = [word for _, word in sorted(found)[:3]]
    return f"Machines that hold it: {', '.join(words)}." if words else ""
