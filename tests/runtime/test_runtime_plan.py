"""resolve: pure, every open value answered once with its reason, what was set is kept."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import HardwareError, UsageError
from appliance.hardware import Gpu, HardwareSnapshot
from appliance.runtime.config import (
    EngineConfig,
    ModelConfig,
    RuntimeConfig,
    ScheduleConfig,
)
from appliance.runtime.model.registry import spec_of
from appliance.runtime.plan import GPU_CLASSES, MIB, Plan, gpu_class, graph_sizes, resolve

GIB = 1 << 30
LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "vocab_size": 128256, "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
}  # fmt: skip
SPEC = spec_of(LLAMA_8B)
SMALL = spec_of({**LLAMA_8B, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
                 "vocab_size": 512, "num_key_value_heads": None})  # fmt: skip
CPU = HardwareSnapshot(cores=8, memory_total=32 * GIB, memory_available=30 * GIB)


def gpus(count: int = 1, gib: int = 80, sm: int = 90) -> HardwareSnapshot:
    return HardwareSnapshot(
        cores=32, memory_total=256 * GIB, memory_available=250 * GIB,
        gpus=tuple(
            Gpu(index=i, uuid=f"GPU-{i}", name="H100", memory_total=gib * GIB, memory_used=0, sm=sm)
            for i in range(count)
        ),
    )  # fmt: skip


def config(engine: dict[str, Any] | None = None, **sections: Any) -> RuntimeConfig:
    return RuntimeConfig(
        run="r", dir="/r", model=sections.pop("model", ModelConfig(path="/m", id="m")),
        engine=EngineConfig(**(engine or {})), **sections,
    )  # fmt: skip


def answer(plan: Plan, field: str) -> tuple[Any, str]:
    (found,) = (a for a in plan.answers if a.field == field)
    return found.value, found.source


@pytest.mark.parametrize("hardware", [CPU, gpus(), gpus(2, 24, 89)])
def test_nothing_stays_open_and_each_field_has_one_answer(hardware: HardwareSnapshot) -> None:
    asked = config()
    plan = resolve(asked, SPEC, hardware)
    resolved = plan.config
    sections = {
        "model": resolved.model, "serve": resolved.serve,
        "schedule": resolved.schedule, "engine": resolved.engine,
    }  # fmt: skip
    values = {
        f"{name}.{field}": value
        for name, section in sections.items()
        for field, value in msgspec.structs.asdict(section).items()
    }
    told_by_files = {"model.load_format", "model.tool_parser", "model.reasoning_parser"}
    for field in told_by_files:  # their `auto` is an answer: from the model's own files
        values.pop(field)
    assert "auto" not in values.values()
    assert len({a.field for a in plan.answers}) == len(plan.answers)
    assert {a.field: a.value for a in plan.answers if a.field not in told_by_files} == values
    assert all(a.reason for a in plan.answers if a.source == "rule" and a.field != "engine.graphs")
    assert resolve(asked, SPEC, hardware) == plan, "the same question has the same answer"
    assert asked == config(), "the question is left as it was"


def test_resolved_config_resolves_to_itself() -> None:
    for hardware in (CPU, gpus()):
        once = resolve(config(), SPEC, hardware).config
        assert resolve(once, SPEC, hardware).config == once


def test_cpu() -> None:
    plan = resolve(config(), SPEC, CPU).config
    assert (plan.model.dtype, plan.engine.device, plan.engine.attention) == (
        "float32", "cpu", "reference",
    )  # fmt: skip
    assert not plan.engine.graphs and plan.engine.graph_batch_sizes == ()
    assert plan.engine.threads == 8
    assert resolve(config({"tp": 2}), SPEC, CPU).config.engine.threads == 4
    assert resolve(config(), SMALL, CPU).config.engine.threads == 1


@pytest.mark.parametrize("gib", [16, 24, 48, 80, 141, 192])
def test_gpu_classes(gib: int) -> None:
    own = gpu_class(gib * GIB)
    plan = resolve(config(), SPEC, gpus(1, gib)).config
    assert plan.engine.device == "cuda" and plan.engine.graphs
    assert plan.engine.attention == "flashinfer"
    assert (plan.schedule.chunk, plan.schedule.max_running) == (own.chunk, own.max_running)
    assert plan.engine.graph_batch_sizes[-1] == own.graph_rows


def test_smallest_gpu_in_use_decides() -> None:
    mixed = msgspec.structs.replace(gpus(), gpus=gpus(1, 80).gpus + gpus(1, 24).gpus)
    assert resolve(config(), SPEC, mixed).config.schedule.chunk == 8192
    assert resolve(config({"tp": 2}), SPEC, mixed).config.schedule.chunk == 4096


def test_old_gpu_has_no_bfloat16() -> None:
    plan = resolve(config(), SPEC, gpus(1, 16, sm=75))
    assert answer(plan, "model.dtype") == ("float16", "rule")


def test_what_was_set_is_kept_and_says_by_whom() -> None:
    asked = config({"threads": 3}, schedule=ScheduleConfig(chunk=100, max_running=7))
    sources = {"engine.threads": "flag", "schedule.chunk": "profile cpu"}
    plan = resolve(asked, SPEC, CPU, sources)
    assert answer(plan, "engine.threads") == (3, "flag")
    assert answer(plan, "schedule.chunk") == (100, "profile cpu")
    assert answer(plan, "schedule.max_running") == (7, "default")
    assert answer(plan, "schedule.policy") == ("fcfs", "default")


def test_graphs_stop_at_the_most_rows_that_can_run() -> None:
    asked = config(schedule=ScheduleConfig(max_running=20))
    assert resolve(asked, SPEC, gpus()).config.engine.graph_batch_sizes == (1, 2, 4, 8, 12, 16, 20)


def test_graphs_can_be_turned_off() -> None:
    plan = resolve(config({"graphs": False}), SPEC, gpus()).config
    assert not plan.engine.graphs and plan.engine.graph_batch_sizes == ()


def test_attention_in_plain_torch_is_not_captured() -> None:
    asked = config({"attention": "reference", "graph_batch_sizes": (1, 2)})
    plan = resolve(asked, SPEC, gpus(), {"engine.attention": "flag"}).config
    assert (plan.engine.attention, plan.engine.graphs) == ("reference", False)
    by = {"engine.attention": "flag", "engine.graphs": "profile h200x1-bf16"}
    assert not resolve(asked, SPEC, gpus(), by).config.engine.graphs
    with pytest.raises(UsageError, match="not in float32"):
        resolve(config({"attention": "flashinfer"}), SPEC, CPU)


def test_gpu_asked_for_where_none_is() -> None:
    with pytest.raises(HardwareError, match="none can be seen") as refused:
        resolve(config({"device": "cuda"}), SPEC, CPU)
    assert "--profile cpu" in refused.value.hint
    broken = msgspec.structs.replace(CPU, problem="driver/library version mismatch")
    with pytest.raises(HardwareError, match="version mismatch"):
        resolve(config({"device": "cuda"}), SPEC, broken)


def test_gpu_machine_may_serve_on_its_cpu() -> None:
    plan = resolve(config({"device": "cpu"}), SPEC, gpus()).config
    assert (plan.engine.attention, plan.model.dtype, plan.engine.graphs) == (
        "reference", "float32", False,
    )  # fmt: skip


def test_likely_tokens_are_searched_for_where_there_are_kernels_for_it() -> None:
    wide = ModelConfig(path="/m", id="m", dtype="float32")
    for hardware, model, how in (
        (gpus(), None, "search"), (gpus(1, 16, 75), None, "search"), (gpus(), wide, "sort"),
        (CPU, None, "sort"),
    ):  # fmt: skip
        asked = config(**({"model": model} if model else {}))
        assert answer(resolve(asked, SPEC, hardware), "engine.filter") == (how, "rule")
    assert resolve(config({"filter": "sort"}), SPEC, gpus()).config.engine.filter == "sort"
    for hardware, model in ((CPU, {}), (gpus(), {"model": wide})):
        with pytest.raises(UsageError, match="not in float32"):
            resolve(config({"filter": "search"}, **model), SPEC, hardware)


@pytest.mark.parametrize("tp,fits", [(1, True), (8, True), (16, True), (3, False), (64, False)])
def test_tp_divides_the_heads(tp: int, fits: bool) -> None:
    if fits:
        resolve(config({"tp": tp}), SPEC, CPU)
    else:
        with pytest.raises(UsageError, match=f"tp {tp} does not divide"):
            resolve(config({"tp": tp}), SPEC, CPU)


def test_context_longer_than_the_models() -> None:
    asked = config(model=ModelConfig(path="/m", id="m", context=200_000))
    with pytest.raises(UsageError, match="longer than the model's 131072") as refused:
        resolve(asked, SPEC, CPU)
    assert "131072" in refused.value.hint


@given(st.integers(1, 5000))
def test_graph_sizes_end_at_the_largest(largest: int) -> None:
    sizes = graph_sizes(largest)
    assert sizes[-1] == largest and list(sizes) == sorted(set(sizes)) and sizes[0] >= 1


@pytest.mark.parametrize("eight_bit", [False, True])
def test_no_row_count_is_padded_to_a_size_that_is_slow(eight_bit: bool) -> None:
    sizes = graph_sizes(1024, eight_bit)
    assert not {288, 336, 352, 400, 416, 448, 672, 704, 832} & set(sizes)
    assert max(b / a for a, b in pairwise(s for s in sizes if s >= 16)) <= 1.5
    assert (432 in sizes) is not eight_bit


def test_weights_of_8_bits_have_sizes_of_their_own() -> None:
    asked = config(model=ModelConfig(path="/m", id="m", quantization="fp8"))
    for wanted, eight_bit in ((config(), False), (asked, True)):
        found = resolve(wanted, SPEC, gpus(1, 80)).config.engine.graph_batch_sizes
        assert found == graph_sizes(2048, eight_bit)


def test_every_memory_has_a_class() -> None:
    assert gpu_class(0) == GPU_CLASSES[0]
    assert gpu_class(80 * GIB) is gpu_class(90000 * MIB)
    assert gpu_class(1 << 50) == GPU_CLASSES[-1]


def test_keys_of_8_bits_are_asked_for_never_chosen() -> None:
    plain = resolve(config(), SPEC, gpus())
    assert answer(plan=plain, field="model.kv_dtype") == ("model", "rule")
    calibrated = msgspec.structs.replace(SPEC, kv_scales=True)
    plan = resolve(config(), calibrated, gpus())
    (found,) = (a for a in plan.answers if a.field == "model.kv_dtype")
    assert found.value == "model" and "model.kv_dtype=e4m3" in found.reason
    for dtype, too_old, enough in (("e4m3", 86, 89), ("e5m2", 75, 80)):
        asked = config(model=ModelConfig(path="/m", id="m", kv_dtype=dtype))  # type: ignore[arg-type]
        assert resolve(asked, SPEC, gpus(sm=enough)).config.model.kv_dtype == dtype
        assert resolve(asked, SPEC, CPU).config.model.kv_dtype == dtype
        with pytest.raises(HardwareError, match=f"{too_old / 10}"):
            resolve(asked, SPEC, gpus(sm=too_old))


@pytest.mark.parametrize(
    ("hardware", "asked", "can"),
    [
        (gpus(), {}, True),
        (gpus(), {"few_rows": False}, False),
        (gpus(sm=89), {"few_rows": True}, False),
        (gpus(2), {"tp": 2}, False),
        (CPU, {}, False),
    ],
)
def test_few_rows_have_a_kernel_of_their_own_where_it_can_run(
    hardware: HardwareSnapshot, asked: dict[str, Any], can: bool
) -> None:
    assert resolve(config(asked), SPEC, hardware).config.engine.few_rows is can


def test_torch_compiles_where_it_is_asked_to_and_something_is_left() -> None:
    wide = ModelConfig(path="/m", id="m", dtype="float32")
    asked, by = config({"compile": True}), {"engine.compile": "flag"}
    assert not resolve(config(), SPEC, CPU).config.engine.compile
    assert resolve(asked, SPEC, CPU, by).config.engine.compile
    on_gpu = resolve(asked, SPEC, gpus(), by)
    assert answer(on_gpu, "engine.compile") == (False, "rule")
    exact = config({"compile": True}, model=wide)
    assert resolve(exact, SPEC, gpus(), by).config.engine.compile


def test_few_rows_of_another_form_run_as_all_others_do() -> None:
    for model in (ModelConfig(path="/m", id="m", dtype="float32"),
                  ModelConfig(path="/m", id="m", kv_dtype="e4m3")):  # fmt: skip
        plan = resolve(config({"few_rows": True}, model=model), SPEC, gpus())
        value, reason = next((a.value, a.reason) for a in plan.answers
                             if a.field == "engine.few_rows")  # fmt: skip
        assert not value and reason
    assert not resolve(config(), SMALL, gpus()).config.engine.few_rows


def test_shared_pages_are_read_once_where_that_saves_gigabytes() -> None:
    """A page of 16 tokens of Llama-3.1-8B is 2 MiB."""
    assert resolve(config(), SPEC, gpus()).config.schedule.share_from == 2048
    assert resolve(config({"tp": 2}), SPEC, gpus(2)).config.schedule.share_from == 4096
    assert resolve(config(), SPEC, CPU).config.schedule.share_from == 0
    asked = config(schedule=ScheduleConfig(share_from=7))
    assert resolve(asked, SPEC, gpus()).config.schedule.share_from == 7


def test_decode_rows_join_prefills_that_are_captured() -> None:
    assert resolve(config(), SPEC, gpus()).config.schedule.mixed_tokens == 1024
    assert resolve(config({"graphs": False}), SPEC, gpus()).config.schedule.mixed_tokens == 1
    assert resolve(config(), SPEC, CPU).config.schedule.mixed_tokens == 1


def test_rounding_is_fused_where_linears_take_8_bits() -> None:
    narrow = config(model=ModelConfig(path="/m", id="m", quantization="fp8"))
    assert resolve(narrow, SPEC, gpus()).config.engine.fuse_rounding
    assert not resolve(config(), SPEC, gpus()).config.engine.fuse_rounding
