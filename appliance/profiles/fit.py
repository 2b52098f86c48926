"""Weights, pages and workspace against memory: does it fit, how long a context, how many requests.

The engine sizes its page pool by what it measures; this is the estimate that is made before a
byte is loaded. It errs on the side of less.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from appliance.errors import ApplianceError, DoesNotFitError
from appliance.hardware import Gpu, HardwareSnapshot, detect
from appliance.profiles.match import choose
from appliance.profiles.store import load
from appliance.runtime.config import RuntimeConfig
from appliance.runtime.model.registry import spec_of
from appliance.runtime.plan import Answer, Plan, resolve
from appliance.runtime.spec import ModelSpec

MIB = 1 << 20
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CUDA_CONTEXT = 600 * MIB
"""A process's context, libraries and allocator slack on a GPU."""
ATTENTION_WORKSPACE = 512 * MIB
GRAPH_BYTES_PER_ROW = MIB
"""What a captured decode step keeps for each row of its batch, for all sizes together."""
CPU_MOST_POOL = 8 << 30
SMALLEST_CONTEXT = 512
"""A pool of fewer tokens than this serves nobody."""


class Fit(Struct, frozen=True):
    """Bytes are of one rank: the GPU with the least room, or the host's memory on a CPU.

    context: of the config, or what was asked for. longest_context: what one request can have.
    requests_at_context: how many requests of that length the pool holds at once.
    """

    fits: bool
    device: str
    weights_bytes: int
    workspace_bytes: int
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
    """`pid 4121 'python' holds 5.1 GB`, for the tight GPU."""

    def numbers(self) -> str:
        """`16.1 GB weights + 51.0 GB for 389,000 tokens of context on 80.0 GB`."""
        return (
            f"{gb(self.weights_bytes)} weights + {gb(self.pool_bytes)} for "
            f"{self.pool_tokens:,} tokens of context on {gb(self.memory_total)}"
        )


def gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if abs(count) >= 1e8 else f"{count / 1e6:.1f} MB"


def weights_bytes(spec: ModelSpec, dtype: str, tp: int) -> int:
    """Bytes of one rank's weights. Norms and such, which every rank holds whole, are counted as
    shared out; they are below a thousandth."""
    size = DTYPE_BYTES[dtype]
    total = spec.parameters()
    if spec.quant is None:
        return total * size // tp
    embeddings = (1 if spec.tied_embeddings else 2) * spec.vocab * spec.hidden
    return ((total - embeddings) + embeddings * size) // tp


def fit(spec: ModelSpec, config: RuntimeConfig, hardware: HardwareSnapshot) -> Fit:
    """config: resolved (no `auto` left)."""
    tp, dtype = config.engine.tp, config.model.dtype
    size = DTYPE_BYTES[dtype]
    weights = weights_bytes(spec, dtype, tp)
    if config.engine.device == "cuda":
        gpus = hardware.gpus[: tp * config.engine.replicas]
        fraction = config.engine.memory_fraction
        gpu = min(gpus, key=lambda g: _room(g, fraction))
        total, free = gpu.memory_total, gpu.memory_total - gpu.memory_used
        budget, tight, holders = _room(gpu, fraction), gpu.index, _holders(gpu)
        workspace = _gpu_workspace(spec, config, size)
    else:
        ranks = tp * config.engine.replicas
        total, free = hardware.memory_total, hardware.memory_available
        tight, holders = -1, ()
        workspace = _activations(spec, config, size)
        # the fraction is for the pool; weights and workspace may have the rest of what is free
        kept = min(int(free / ranks * config.engine.memory_fraction), CPU_MOST_POOL)
        budget = min(int(free / ranks), weights + workspace + kept)
    kv = spec.kv_bytes_per_token(size, tp)
    pool = max(0, budget - weights - workspace)
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
        weights_bytes=weights,
        workspace_bytes=workspace,
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
            f"Use `--context {longest}`, the longest that fits.",
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


def verdict(
    config_json: dict[str, Any], weight_bytes: int, hardware: HardwareSnapshot | None = None
) -> str:
    """One sentence on whether a model can be served here, before it is downloaded.

    weight_bytes: of its safetensors together. hardware: None looks at this machine.
    """
    try:
        spec = spec_of(config_json)
    except ApplianceError as e:
        return f"cannot be served: {e.message}"
    machine = hardware or detect()
    try:
        profile = choose(load().values(), machine).profile
        plan = _plan_of(spec, profile.values(), machine)
        result = fit(spec, plan.config, machine)
    except ApplianceError as e:
        return f"cannot be served here: {e.message}"
    if not result.fits:
        lacking = result.weights_bytes + result.workspace_bytes - result.budget_bytes
        return (
            f"does not fit: {gb(weight_bytes)} of weights take "
            f"{gb(result.weights_bytes)} as {plan.config.model.dtype} with profile {profile.name}, "
            f"{gb(max(lacking, result.kv_bytes_per_token))} more than there is room for."
        )
    return (
        f"fits with profile {profile.name}: {result.numbers()}, "
        f"at most {result.longest_context:,} for one request."
    )


def _plan_of(spec: ModelSpec, values: dict[str, Any], hardware: HardwareSnapshot) -> Plan:
    sections: dict[str, dict[str, Any]] = {"model": {}, "serve": {}, "schedule": {}, "engine": {}}
    for field, value in values.items():
        section, _, name = field.partition(".")
        sections[section][name] = value
    sections["model"] |= {"path": "", "id": ""}
    bare: dict[str, Any] = {"run": "", "dir": "", **sections}
    return resolve(msgspec.convert(bare, RuntimeConfig), spec, hardware)


def _room(gpu: Gpu, fraction: float) -> int:
    """The allowed share, less what others hold."""
    return max(0, int(gpu.memory_total * fraction) - gpu.memory_used - CUDA_CONTEXT)


def _holders(gpu: Gpu) -> tuple[str, ...]:
    large = sorted(gpu.processes, key=lambda p: -p.memory_bytes)
    return tuple(
        f"pid {p.pid} '{p.name}' holds {gb(p.memory_bytes)}" for p in large if p.memory_bytes > 1e8
    )[:4]


def _activations(spec: ModelSpec, config: RuntimeConfig, size: int) -> int:
    """Of one prefill step: hidden states, query, the gated halves of the MLP, and logits."""
    a, tp = spec.attention, config.engine.tp
    rows = max(config.schedule.chunk, 1)
    width = 4 * spec.hidden + 2 * a.heads * a.head_dim // tp + 3 * spec.intermediate // tp
    logits = min(config.schedule.max_running, rows) * spec.vocab * 4 * 2
    return rows * width * size + logits


def _gpu_workspace(spec: ModelSpec, config: RuntimeConfig, size: int) -> int:
    graphs = max(config.engine.graph_batch_sizes, default=0) if config.engine.graphs else 0
    return _activations(spec, config, size) + ATTENTION_WORKSPACE + graphs * GRAPH_BYTES_PER_ROW


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
    fixes = []
    wider = _enough_ranks(spec, config, hardware)
    if wider:
        fixes.append(f"Use `--tp {wider}`: {wider} of the {len(hardware.gpus)} GPUs hold it.")
    if result.holders:
        fixes.append("Stop what holds the GPU's memory, then run the same command.")
    if not fixes:
        largest = max(0, result.budget_bytes - result.workspace_bytes) * 9 // 10
        count = largest // DTYPE_BYTES[config.model.dtype] / 1e9
        fixes.append(
            f"Serve a model of at most {count:.1f} billion weights in {config.model.dtype} here."
        )
    return DoesNotFitError(
        f"{config.model.id} does not fit profile {config.profile}\n{why}.", "\n".join(fixes)
    )


def _enough_ranks(spec: ModelSpec, config: RuntimeConfig, hardware: HardwareSnapshot) -> int:
    """The smallest tensor-parallel size on this machine's GPUs at which it fits; 0: none."""
    if config.engine.device != "cuda":
        return 0
    a = spec.attention
    for tp in (2, 4, 8):
        if tp <= config.engine.tp or tp > len(hardware.gpus) or a.heads % tp or a.kv_heads % tp:
            continue
        engine = msgspec.structs.replace(config.engine, tp=tp, replicas=1)
        if fit(spec, msgspec.structs.replace(config, engine=engine), hardware).fits:
            return tp
    return 0
