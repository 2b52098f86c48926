"""The ways out where a model or a context does not fit: each is reckoned before it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from appliance.errors import ApplianceError, DoesNotFitError
from appliance.hardware import Gpu, HardwareSnapshot
from appliance.profiles.fit import Fit, fit, gb
from appliance.profiles.footprint import DTYPE_BYTES
from appliance.profiles.known import IDLE_MIB, KNOWN, machine_of
from appliance.runtime.config import RuntimeConfig
from appliance.runtime.plan import Answer, Plan, tp_sizes
from appliance.runtime.spec import ModelSpec

_MOST_SHARE = 0.9
"""The share of a GPU's memory that any GPU can give."""
_LEAST_CHUNK, _LEAST_RUNNING = 1024, 64
"""What is advised where a smaller workspace makes the model fit."""


class Reckon(Protocol):
    """The fit of the run that would be made on a machine with settings beside those asked for, by
    their dotted names; ApplianceError where it would be refused. elsewhere: another machine than
    this one, which chooses its own profile and number of GPUs."""

    def __call__(
        self, hardware: HardwareSnapshot, settings: Mapping[str, Any], elsewhere: bool = False, /
    ) -> Fit: ...


def limit_context(
    plan: Plan, spec: ModelSpec, hardware: HardwareSnapshot, asked: bool, reckon: Reckon
) -> tuple[Plan, Fit]:
    """The plan with a context that memory can hold, and its fit.

    asked: the user named the context. Then one that is too long is refused, else it is shortened.
    DoesNotFitError says by how much, and what would fit: each way out is reckoned.
    """
    result = fit(spec, plan.config, hardware)
    if not result.fits:
        raise _does_not_fit(result, plan.config, spec, hardware, asked, reckon)
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
                    *_ways(spec, plan.config, hardware, reckon, result.context),
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


def _does_not_fit(
    result: Fit,
    config: RuntimeConfig,
    spec: ModelSpec,
    hardware: HardwareSnapshot,
    asked: bool,
    reckon: Reckon,
) -> DoesNotFitError:
    where = f"GPU {result.tight}" if result.tight >= 0 else "this machine"
    why = (
        f"weights need {gb(result.weights_bytes)} and workspace {gb(result.workspace_bytes)}; "
        f"{where} has {gb(result.memory_total)}, of which {gb(result.memory_free)} are free"
    )
    if result.holders:
        why += f" ({', '.join(result.holders)})"
    context = result.context if asked else 0
    fixes = _ways(spec, config, hardware, reckon, context)
    if context and not fixes:
        fixes = _ways_with_less_context(spec, config, hardware, reckon)
    fixes = fixes or [_smaller(result, config, where)]
    elsewhere = machine_that_holds(spec, config, context, reckon)
    return DoesNotFitError(
        f"{config.model.id} does not fit profile {config.profile}\n{why}.",
        "\n".join([*fixes, elsewhere] if elsewhere else fixes),
    )


def _smaller(result: Fit, config: RuntimeConfig, where: str) -> str:
    """What would fit where this model does not."""
    largest = max(0, result.budget_bytes - result.workspace_bytes) * 9 // 10
    billions = largest // DTYPE_BYTES[config.model.dtype] / 1e9
    if billions < 0.05:
        return f"Free memory of {where}: what others leave holds no model at all."
    return f"Serve a model of at most {billions:.1f} billion weights in {config.model.dtype} here."


class _Way(NamedTuple):
    """option: what to type, or nothing. kind: of several of one kind the first is told."""

    kind: str
    option: str
    says: str
    hardware: HardwareSnapshot
    settings: Mapping[str, Any] = {}

    def text(self, context: str = "") -> str:
        words = " ".join(word for word in (self.option, context) if word)
        if self.option:
            return f"Use `{words}`{self.says}."
        return self.says + (f" with `{words}`." if words else ".")


def _ways(
    spec: ModelSpec, config: RuntimeConfig, hardware: HardwareSnapshot, reckon: Reckon, context: int
) -> list[str]:
    """Changes that make the model fit on this machine with a context of so many tokens (0: any);
    each one has been reckoned as `up` would, so none leads to another refusal."""
    found: dict[str, str] = {}
    for way in _candidates(spec, config, hardware):
        if way.kind not in found and _holds(reckon, way, {}, context):
            found[way.kind] = way.text()
    return list(found.values())


def _ways_with_less_context(
    spec: ModelSpec, config: RuntimeConfig, hardware: HardwareSnapshot, reckon: Reckon
) -> list[str]:
    """The same where none of them holds the context that was asked for: with the longest it has."""
    found: dict[str, str] = {}
    for way in _candidates(spec, config, hardware):
        try:
            longest = reckon(way.hardware, {**way.settings, "model.context": 0}).longest_context
        except ApplianceError:
            continue
        shorter = {"model.context": longest}
        if way.kind not in found and longest and _holds(reckon, way, shorter, longest):
            found[way.kind] = way.text(f"--context {longest}")
    return list(found.values())


def _holds(reckon: Reckon, way: _Way, settings: Mapping[str, Any], context: int) -> bool:
    try:
        found = reckon(way.hardware, {**way.settings, **settings})
    except ApplianceError:
        return False
    return found.fits and found.longest_context >= context


def _candidates(
    spec: ModelSpec, config: RuntimeConfig, hardware: HardwareSnapshot
) -> Iterator[_Way]:
    if config.engine.device != "cuda":
        return
    seen = len(hardware.gpus)
    for tp in tp_sizes(spec, seen):
        if tp > config.engine.tp:
            says = f": {tp} of the {seen} GPUs hold it"
            yield _Way("tp", f"--tp {tp}", says, hardware, {"engine.tp": tp})
    if spec.quant is None and config.model.quantization == "none":
        says = ": weights in 8 bits, rounded as they load"
        fp8 = {"model.quantization": "fp8"}
        yield _Way("bits", "--set model.quantization=fp8", says, hardware, fp8)
    if config.engine.memory_fraction < _MOST_SHARE:
        more = {"engine.memory_fraction": _MOST_SHARE}
        option = f"--set engine.memory_fraction={_MOST_SHARE}"
        yield _Way("share", option, ": more of the GPU's memory", hardware, more)
    used = config.engine.tp * config.engine.replicas
    freest = sorted(hardware.gpus, key=lambda g: g.memory_used - g.memory_total)[:used]
    if {g.index for g in freest} != {g.index for g in hardware.gpus[:used]}:
        chosen = tuple(sorted(freest, key=lambda g: g.index))
        those = f"--gpus {','.join(str(g.index) for g in chosen)}"
        fewer = msgspec.structs.replace(hardware, gpus=chosen)
        yield _Way("gpus", those, ", where there is more room", fewer)
    if any(g.processes for g in hardware.gpus):
        gone = msgspec.structs.replace(hardware, gpus=tuple(map(_without_others, hardware.gpus)))
        yield _Way(
            "others", "", "Stop what holds the GPU's memory, then run the same command", gone
        )
    less = _less_work(config)
    if less:
        said = " ".join(f"--set {name}={_listed(value)}" for name, value in less.items())
        yield _Way("work", said, ": less room for work, more for the model", hardware, less)


def _without_others(gpu: Gpu) -> Gpu:
    return msgspec.structs.replace(
        gpu, memory_used=min(gpu.memory_used, IDLE_MIB << 20), processes=()
    )


def _less_work(config: RuntimeConfig) -> dict[str, Any]:
    """Settings with which a step takes the least workspace; none where it does already."""
    chunk = min(config.schedule.chunk, _LEAST_CHUNK)
    running = min(config.schedule.max_running, _LEAST_RUNNING)
    if (chunk, running) == (config.schedule.chunk, config.schedule.max_running):
        return {}
    less: dict[str, Any] = {"schedule.chunk": chunk, "schedule.max_running": running}
    sizes = tuple(s for s in config.engine.graph_batch_sizes if s <= _LEAST_RUNNING)
    return less | ({"engine.graph_batch_sizes": sizes} if sizes else {})


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def machine_that_holds(spec: ModelSpec, config: RuntimeConfig, context: int, reckon: Reckon) -> str:
    """The smallest machines of known GPUs that hold the model with a context of so many tokens (0:
    any) and what else was asked for, by their words; or nothing."""
    if config.engine.device != "cuda":
        return ""
    found = []
    for gpu in KNOWN:
        for tp in tp_sizes(spec, 8):
            try:
                there = reckon(machine_of(gpu, tp), {}, True)
            except ApplianceError:
                continue
            if there.fits and there.longest_context >= context:
                found.append((tp * gpu.mib, f"{gpu.word}x{tp}"))
                break
    words = [word for _, word in sorted(found)[:3]]
    return f"Machines that hold it: {', '.join(words)}." if words else ""
