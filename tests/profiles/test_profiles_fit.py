"""The arithmetic of what fits, against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from profiles_machines import GIB, H100, H100X8, H200, HOST, RTX4090, T4, held, llama, llama_70b

from appliance.errors import DoesNotFitError
from appliance.hardware import HardwareSnapshot
from appliance.profiles import fit
from appliance.runtime.config import ModelConfig, RuntimeConfig
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


def test_weights_of_the_8b_shape() -> None:
    # 32 blocks of 218,112,000, two tables of 525,336,576, one last norm of 4,096
    assert SPEC_8B.parameters() == 8_030_261_248
    assert fit.weights_bytes(SPEC_8B, "bfloat16", 1) == 16_060_522_496
    assert fit.weights_bytes(SPEC_8B, "bfloat16", 2) == 8_030_261_248
    assert fit.weights_bytes(SPEC_8B, "float32", 1) == 32_121_044_992


def test_weights_of_the_70b_shape() -> None:
    assert fit.weights_bytes(SPEC_70B, "bfloat16", 1) == pytest.approx(141.1e9, rel=1e-3)


def test_fp8_checkpoint_takes_half() -> None:
    spec = msgspec.structs.replace(SPEC_8B, quant=QuantSpec("fp8"))
    tables = 2 * 128256 * 4096
    assert fit.weights_bytes(spec, "bfloat16", 1) == (8_030_261_248 - tables) + 2 * tables


def test_8b_on_an_h100() -> None:
    plan = plan_for(SPEC_8B, H100)
    found = fit.fit(SPEC_8B, plan.config, H100)
    assert found.fits and found.device == "cuda" and found.tight == 0
    assert found.kv_bytes_per_token == 131_072  # 2 × 32 layers × 8 heads × 128 × 2 bytes
    room = int(81559 * (1 << 20) * 0.94) - 500 * (1 << 20) - fit.CUDA_CONTEXT
    assert found.budget_bytes == room
    tokens = (room - found.weights_bytes - found.workspace_bytes) // 131_072 // 16 * 16
    assert found.pool_tokens == tokens
    assert 380_000 < tokens < 480_000
    assert found.longest_context == 131_072
    assert found.requests_at_context == pytest.approx(tokens / 131_072)
    assert found.pool_tokens % 16 == 0


def test_context_is_cut_to_what_memory_holds() -> None:
    plan = plan_for(SPEC_8B, RTX4090)
    cut, found = fit.limit_context(plan, SPEC_8B, RTX4090, asked=False)
    assert 20_000 < found.longest_context < 60_000
    assert cut.config.model.context == found.longest_context == found.pool_tokens
    answer = next(a for a in cut.answers if a.field == "model.context")
    assert answer.source == "rule" and "131,072" in answer.reason
    assert found.requests_at_context == 1.0


def test_context_that_was_asked_for_is_refused_with_the_longest() -> None:
    plan = plan_for(SPEC_8B, RTX4090, context=100_000)
    longest = fit.fit(SPEC_8B, plan.config, RTX4090).longest_context
    with pytest.raises(DoesNotFitError) as caught:
        fit.limit_context(plan, SPEC_8B, RTX4090, asked=True)
    assert f"--context {longest}" in caught.value.hint
    assert "131,072 bytes" in caught.value.message
    again = plan_for(SPEC_8B, RTX4090, context=longest)
    assert fit.limit_context(again, SPEC_8B, RTX4090, asked=True)[0] is again


def test_70b_does_not_fit_one_h100_and_names_the_tp_that_does() -> None:
    plan = plan_for(SPEC_70B, H100X8)
    with pytest.raises(DoesNotFitError) as caught:
        fit.limit_context(plan, SPEC_70B, H100X8, asked=False)
    assert caught.value.exit_code == 7
    assert "weights need 141.1 GB" in caught.value.message
    assert "--tp 4" in caught.value.hint or "--tp 2" in caught.value.hint
    tp = int(caught.value.hint.partition("--tp ")[2][0])
    assert fit.fit(SPEC_70B, plan_for(SPEC_70B, H100X8, tp=tp).config, H100X8).fits
    if tp > 2:
        assert not fit.fit(SPEC_70B, plan_for(SPEC_70B, H100X8, tp=2).config, H100X8).fits


def test_70b_on_one_gpu_says_what_size_would_fit() -> None:
    plan = plan_for(SPEC_70B, H200)
    with pytest.raises(DoesNotFitError, match=r"141\.1 GB") as caught:
        fit.limit_context(plan, SPEC_70B, H200, asked=False)
    assert "billion weights" in caught.value.hint


def test_memory_that_others_hold_is_named() -> None:
    taken = held(H100, 70 * GIB)
    plan = plan_for(SPEC_8B, taken)
    with pytest.raises(DoesNotFitError) as caught:
        fit.limit_context(plan, SPEC_8B, taken, asked=False)
    assert "pid 4121 'python' holds 75.2 GB" in caught.value.message
    assert "Stop what holds" in caught.value.hint


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
    assert fit.verdict(llama(), 16_060_556_376, H100).startswith("fits with profile h100x1-bf16: ")
    small = fit.verdict(llama(), 16_060_556_376, T4)
    assert small.startswith("does not fit: 16.1 GB of weights") and "profile generic" in small
    odd = fit.verdict({"architectures": ["Mystery"]}, 1, H100)
    assert odd.startswith("cannot be served: no family knows the architecture Mystery")
    for text in (small, odd):
        assert "\n" not in text
