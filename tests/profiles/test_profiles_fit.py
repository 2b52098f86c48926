"""The arithmetic of what fits, against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from profiles_machines import (
    A100,
    GIB,
    H100,
    H100X8,
    HOST,
    RTX4090,
    T4,
    held,
    llama,
    llama_70b,
)

from appliance.errors import DoesNotFitError, HardwareError, UsageError
from appliance.hardware import HardwareSnapshot
from appliance.profiles import fit, footprint, known, pick, ways
from appliance.runtime.config import EngineConfig, ModelConfig, RuntimeConfig, ScheduleConfig
from appliance.runtime.model.registry import spec_of
from appliance.runtime.plan import Plan, resolve
from appliance.runtime.spec import QuantSpec

SPEC_8B = spec_of(llama())
SPEC_70B = spec_of(llama_70b())


def plan_for(spec: Any, hardware: HardwareSnapshot, **changes: Any) -> Plan:
    model = ModelConfig(path="/m", id="m", context=changes.pop("context", 0))
    config = RuntimeConfig(run="r", dir="/r", model=model)
    engine = msgspec.structs.replace(config.engine, **changes)
    return resolve(msgspec.structs.replace(config, engine=engine), spec, hardware)


def limit(
    plan: Plan, spec: Any, hardware: HardwareSnapshot, asked: bool = False
) -> tuple[Plan, fit.Fit]:
    """limit_context with ways out that are reckoned from the plan's own context and rules."""

    def reckon(machine: HardwareSnapshot, settings: Any, elsewhere: bool = False, /) -> fit.Fit:
        given: dict[str, Any] = {}
        given["engine.tp"] = len(machine.gpus) if elsewhere else plan.config.engine.tp
        given["engine.memory_fraction"] = plan.config.engine.memory_fraction
        given |= {"model.context": plan.config.model.context if asked else 0, **settings}
        config = RuntimeConfig(run="r", dir="/r", model=ModelConfig(path="/m", id="m"))
        for name, value in given.items():
            section, _, field = name.partition(".")
            part = {"model": config.model, "schedule": config.schedule, "engine": config.engine}
            changed = msgspec.structs.replace(part[section], **{field: value})
            config = msgspec.structs.replace(config, **{section: changed})
        return fit.fit(spec, resolve(config, spec, machine).config, machine)

    return ways.limit_context(plan, spec, hardware, asked, reckon)


def test_weights_of_the_8b_shape() -> None:
    # 32 blocks of 218,112,000, two tables of 525,336,576, one last norm of 4,096
    assert SPEC_8B.parameters() == 8_030_261_248
    assert footprint.parameter_bytes(SPEC_8B, "bfloat16", 1) == 16_060_522_496
    assert footprint.parameter_bytes(SPEC_8B, "bfloat16", 2) == 8_030_261_248
    assert footprint.parameter_bytes(SPEC_8B, "float32", 1) == 32_121_044_992


def test_weights_of_the_70b_shape() -> None:
    assert footprint.parameter_bytes(SPEC_70B, "bfloat16", 1) == pytest.approx(141.1e9, rel=1e-3)


def test_fp8_checkpoint_takes_half() -> None:
    spec = msgspec.structs.replace(SPEC_8B, quant=QuantSpec("fp8"))
    tables = 2 * 128256 * 4096
    assert footprint.parameter_bytes(spec, "bfloat16", 1) == (8_030_261_248 - tables) + 2 * tables


def test_eight_bits_are_advised_where_they_help_and_can_be_computed() -> None:
    h200 = known.assumed("h200")
    plan = plan_for(SPEC_70B, h200)
    with pytest.raises(DoesNotFitError) as caught:
        limit(plan, SPEC_70B, h200)
    assert "--set model.quantization=fp8" in caught.value.hint
    fp8 = msgspec.structs.replace(plan.config.model, quantization="fp8")
    found = fit.fit(SPEC_70B, msgspec.structs.replace(plan.config, model=fp8), h200)
    assert found.fits and found.weights_bytes == pytest.approx(72e9 + 2.1e9, rel=0.02)
    a100 = known.assumed("a100-80")
    with pytest.raises(DoesNotFitError) as caught:
        limit(plan_for(SPEC_70B, a100), SPEC_70B, a100)
    assert "fp8" not in caught.value.hint


def test_8b_on_an_h100() -> None:
    plan = plan_for(SPEC_8B, H100)
    found = fit.fit(SPEC_8B, plan.config, H100)
    assert found.fits and found.device == "cuda" and found.tight == 0
    assert found.kv_bytes_per_token == 131_072  # 2 × 32 layers × 8 heads × 128 × 2 bytes
    room = int(81559 * (1 << 20) * 0.94) - 500 * (1 << 20) - footprint.CUDA_CONTEXT
    assert found.budget_bytes == room
    tokens = (room - found.weights_bytes - found.workspace_bytes) // 131_072 // 16 * 16
    assert found.pool_tokens == tokens
    assert 380_000 < tokens < 480_000
    assert found.longest_context == 131_072
    assert found.requests_at_context == pytest.approx(tokens / 131_072)
    assert found.pool_tokens % 16 == 0


def test_context_is_cut_to_what_memory_holds() -> None:
    plan = plan_for(SPEC_8B, RTX4090)
    cut, found = limit(plan, SPEC_8B, RTX4090)
    assert 20_000 < found.longest_context < 60_000
    assert cut.config.model.context == found.longest_context == found.pool_tokens
    answer = next(a for a in cut.answers if a.field == "model.context")
    assert answer.source == "rule" and "131,072" in answer.reason
    assert found.requests_at_context == 1.0


def test_context_that_was_asked_for_is_refused_with_the_longest() -> None:
    plan = plan_for(SPEC_8B, RTX4090, context=100_000)
    longest = fit.fit(SPEC_8B, plan.config, RTX4090).longest_context
    with pytest.raises(DoesNotFitError) as caught:
        limit(plan, SPEC_8B, RTX4090, asked=True)
    assert f"--context {longest}" in caught.value.hint
    assert "131,072 bytes" in caught.value.message
    again = plan_for(SPEC_8B, RTX4090, context=longest)
    assert limit(again, SPEC_8B, RTX4090, asked=True)[0] is again


def test_70b_does_not_fit_one_h100_and_names_the_tp_that_does() -> None:
    plan = plan_for(SPEC_70B, H100X8)
    with pytest.raises(DoesNotFitError) as caught:
        limit(plan, SPEC_70B, H100X8)
    assert caught.value.exit_code == 7
    assert "weights need 141.8 GB" in caught.value.message
    assert "--tp 4" in caught.value.hint or "--tp 2" in caught.value.hint
    tp = int(caught.value.hint.partition("--tp ")[2][0])
    assert fit.fit(SPEC_70B, plan_for(SPEC_70B, H100X8, tp=tp).config, H100X8).fits
    if tp > 2:
        assert not fit.fit(SPEC_70B, plan_for(SPEC_70B, H100X8, tp=2).config, H100X8).fits


def test_70b_on_one_gpu_says_what_size_would_fit() -> None:
    plan = plan_for(SPEC_70B, A100)
    with pytest.raises(DoesNotFitError, match=r"141\.\d GB") as caught:
        limit(plan, SPEC_70B, A100)
    assert "billion weights" in caught.value.hint


def test_memory_that_others_hold_is_named() -> None:
    taken = held(H100, 70 * GIB)
    plan = plan_for(SPEC_8B, taken)
    with pytest.raises(DoesNotFitError) as caught:
        limit(plan, SPEC_8B, taken)
    assert "pid 4121 'python' holds 75.2 GB" in caught.value.message
    share = fit.fit(SPEC_8B, plan.config, taken).gpus[0]
    assert share.holders == ("pid 4121 'python' holds 75.2 GB",)
    assert share.others_bytes == 70 * GIB
    assert "Stop what holds" in caught.value.hint


def test_other_gpus_are_named_where_they_have_room() -> None:
    taken = held(H100X8, 70 * GIB)
    plan = plan_for(SPEC_8B, taken)
    with pytest.raises(DoesNotFitError) as caught:
        limit(plan, SPEC_8B, taken)
    assert "Use `--gpus 1`, where there is more room." in caught.value.hint


def test_cpu_counts_float32_and_the_host() -> None:
    plan = plan_for(SPEC_8B, HOST)
    found = fit.fit(SPEC_8B, plan.config, HOST)
    assert found.fits and found.device == "cpu" and found.tight == -1
    assert found.kv_bytes_per_token == 262_144
    assert found.budget_bytes <= HOST.memory_available


@pytest.mark.parametrize("tokens", [64, 4096])
def test_pool_that_was_named_is_not_exceeded(tokens: int) -> None:
    plan = plan_for(SPEC_8B, H100, max_total_tokens=tokens)
    found = fit.fit(SPEC_8B, plan.config, H100)
    assert found.pool_tokens == tokens
    assert found.fits == (tokens >= 512)


def test_verdict_is_one_sentence() -> None:
    assert pick.verdict(llama(), 16_060_556_376, H100).startswith("fits with profile h100x1-bf16: ")
    small = pick.verdict(llama(), 16_060_556_376, T4)
    assert small.startswith("does not fit: 16.1 GB of weights") and "profile t4x1-fp16" in small
    odd = pick.verdict({"architectures": ["Mystery"]}, 1, H100)
    assert odd.startswith("cannot be served: no family knows the architecture Mystery")
    for text in (small, odd):
        assert "\n" not in text


def engine_as_recorded(dtype: str, context: int, chunk: int, running: int) -> RuntimeConfig:
    return RuntimeConfig(
        run="r",
        dir="/r",
        model=ModelConfig(path="/m", id="m", dtype=dtype, context=context),
        schedule=ScheduleConfig(chunk=chunk, max_running=running),
        engine=EngineConfig(
            device="cuda",
            memory_fraction=0.94,
            attention="reference" if dtype == "float32" else "flashinfer",
            filter="sort",
            graphs=False,
            graph_batch_sizes=(),
        ),
    )


@pytest.mark.parametrize(
    ("config", "weights", "workspace"),
    [
        # what engines of the 8B shape told on an H100 80GB HBM3, 2026-11-20
        (engine_as_recorded("float32", 8192, 1024, 64), 32_125_372_928, 1_032_992_768),
        (engine_as_recorded("bfloat16", 8192, 8192, 512), 16_485_368_832, 1_819_049_984),
    ],
)
def test_plan_is_within_five_percent_of_what_engines_told(
    config: RuntimeConfig, weights: int, workspace: int
) -> None:
    part = footprint.footprint(SPEC_8B, config)
    assert part.weights == pytest.approx(weights, rel=0.01)
    assert part.weights + part.workspace == pytest.approx(weights + workspace, rel=0.05)


@pytest.mark.parametrize(
    ("quantization", "weights", "workspace", "graphs", "tokens"),
    [
        # benchmarks.memory_plan on an H100 80GB HBM3, 2026-11-21
        ("none", 16.89e9, 3.07e9, 0.57e9, 451_392),
        ("fp8", 9.92e9, 2.91e9, 0.50e9, 505_808),
    ],
)
def test_plan_is_as_engines_with_captured_passes_told(
    quantization: str, weights: float, workspace: float, graphs: float, tokens: int
) -> None:
    model = ModelConfig(path="/m", id="m", load_format="dummy", quantization=quantization)
    config = resolve(RuntimeConfig(run="r", dir="/r", model=model), SPEC_8B, H100).config
    found = fit.fit(SPEC_8B, config, H100)
    assert found.pool_tokens == pytest.approx(tokens, rel=0.02)
    taken = found.weights_bytes + found.workspace_bytes
    assert taken == pytest.approx(weights + workspace, rel=0.05)
    # whatever the passes keep for themselves, not less than was found
    assert graphs <= found.graphs_bytes < graphs + 0.2e9


def test_searching_takes_less_than_sorting() -> None:
    """Of 2,048 rows logits in bfloat16; of 512 twice in float32 besides, and 136 KiB a row."""
    config = plan_for(SPEC_8B, H100).config
    chunk = msgspec.structs.replace(config.schedule, chunk=1, max_running=2048, beside_rows=0)
    rows = 2048 * 128_256 * 2 + 512 * (128_256 * (4 + 4) + 136 * 1024)
    taken = {}
    for name in ("search", "sort"):
        engine = msgspec.structs.replace(config.engine, filter=name)
        own = msgspec.structs.replace(config, schedule=chunk, engine=engine)
        taken[name] = footprint.footprint(SPEC_8B, own).activations
    assert config.engine.filter == "search"
    assert taken["search"] == rows + footprint.SLACK
    assert taken["sort"] - taken["search"] == 128 * 128_256 * 38 - 512 * 136 * 1024


def test_captured_prefills_are_those_of_the_engine() -> None:
    from appliance.runtime.engine.kit import PREFILL_SIZES

    assert len(PREFILL_SIZES) == footprint.PREFILL_PASSES
    assert max(PREFILL_SIZES) == footprint.PREFILL_MOST


def test_rows_in_float32_are_those_of_the_sampler() -> None:
    from appliance.runtime.engine.sample.sampler import PART

    assert PART == footprint.SAMPLED_ROWS


def test_rows_with_penalties_are_those_of_the_engine() -> None:
    from appliance.runtime.wire.step import PENALIZED_MOST

    assert PENALIZED_MOST == footprint.PENALIZED_ROWS


@pytest.mark.parametrize("gpu", ["h100", "t4x8", "rtx4090x2", "l40sx4"])
def test_every_way_out_fits(gpu: str) -> None:
    """What a refusal advises is computed, so none of it leads to another refusal."""
    machine = known.assumed(gpu)
    plan = plan_for(SPEC_70B, machine)
    with pytest.raises(DoesNotFitError) as caught:
        limit(plan, SPEC_70B, machine)
    hint = caught.value.hint
    words = hint.partition("Machines that hold it: ")[2].split(".\n")[0].rstrip(".").split(", ")
    assert words != [""]
    for word in words:
        other = known.assumed(word)
        tp = len(other.gpus)
        assert fit.fit(SPEC_70B, plan_for(SPEC_70B, other, tp=tp).config, other).fits, word
    if "--tp " in hint:
        tp = int(hint.partition("--tp ")[2][0])
        wider = msgspec.structs.replace(plan.config.engine, tp=tp)
        config = msgspec.structs.replace(plan.config, engine=wider)
        assert fit.fit(SPEC_70B, config, machine).fits


def test_less_room_for_work_is_advised_where_it_helps() -> None:
    machine = known.assumed("h100x2")
    plan = plan_for(SPEC_70B, machine, tp=2, memory_fraction=0.88)
    with pytest.raises(DoesNotFitError, match="does not fit") as caught:
        limit(plan, SPEC_70B, machine)
    hint = caught.value.hint
    assert "--set schedule.chunk=1024 --set schedule.max_running=64" in hint
    assert "billion weights" not in hint


def test_gpus_that_are_not_there() -> None:
    plan = plan_for(SPEC_8B, H100, tp=2)
    with pytest.raises(HardwareError, match="1 can be seen") as caught:
        fit.fit(SPEC_8B, plan.config, H100)
    assert caught.value.exit_code == 8 and "--tp 1" in caught.value.hint


def test_assumed_machines() -> None:
    machine = known.assumed("H100x8")
    assert len(machine.gpus) == 8 and machine.gpus[3].name == "NVIDIA H100 80GB HBM3"
    assert len(known.assumed("a100-80").gpus) == 1
    with pytest.raises(UsageError, match="Did you mean 'h100'"):
        known.assumed("h10x8")


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("8xH100-80G", "NVIDIA H100 80GB HBM3", 8),
        ("2xa100-40gb", "NVIDIA A100-SXM4-40GB", 2),
        ("a100-80GiBx4", "NVIDIA A100-SXM4-80GB", 4),
        ("4xl40s", "NVIDIA L40S", 4),
    ],
)
def test_machines_as_others_write_them(text: str, name: str, count: int) -> None:
    gpus = known.assumed(text).gpus
    assert len(gpus) == count and gpus[0].name == name


@pytest.mark.parametrize(
    ("text", "meant"), [("a100", "a100-80"), ("h100-40gb", "a100-40"), ("2xh100x8", "h100")]
)
def test_sizes_that_no_such_gpu_has(text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"Did you mean '{meant}'"):
        known.assumed(text)


def test_many_requests_are_counted_in_whole_ones() -> None:
    found = fit.fit(SPEC_8B, plan_for(SPEC_8B, H100, context=2048).config, H100)
    assert found.at_once() == f"{int(found.requests_at_context)} requests of full length"
    few = msgspec.structs.replace(found, requests_at_context=6.94)
    assert few.at_once() == "6.9 requests of full length"
