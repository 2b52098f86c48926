"""On real GPUs: captured and eager passes agree with plain torch, and two ranks with one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from appliance.runtime.engine import captures
from appliance.runtime.engine.executor import DeviceExecutor
from appliance.runtime.engine.graphs import DecodeGraphs
from appliance.runtime.offline import Engine, Generation
from appliance.runtime.schedule import loop
from tests.reference import models

pytestmark = pytest.mark.gpu

WIDE = {"hidden_size": 1024, "intermediate_size": 1536, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 128, "num_hidden_layers": 3,
        "max_position_embeddings": 1024}  # fmt: skip
EXACT = {"model.dtype": "float32", "engine.device": "cuda", "engine.max_total_tokens": 20000,
         "schedule.max_running": 64, "schedule.chunk": 64}  # fmt: skip
FAST = {"model.dtype": "bfloat16", "engine.device": "cuda", "engine.max_total_tokens": 60000,
        "schedule.max_running": 64,
        "engine.graph_batch_sizes": (1, 2, 4, 8, 16, 32, 64)}  # fmt: skip
GREEDY = {"max_tokens": 32, "temperature": 0.0, "ignore_eos": True}


Answers = list[Generation]


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """transformers' side runs on the CPU, where models this small, computed in as many processes as
    there are cores, wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose attention is of a shape that FlashInfer's prebuilt kernels are of."""
    folder: Path = tmp_path_factory.mktemp("wide")
    models.make(folder, "llama", **WIDE)
    return folder


def answers(folder: Path, changes: dict[str, object]) -> Answers:
    with Engine(folder, {**FAST, **changes}) as engine:
        return engine.generate(models.prompts(), {**GREEDY, "logprobs": 0})


@pytest.fixture(scope="module")
def unrounded(wide: Path) -> Answers:
    return answers(wide, {})


def two_gpus() -> bool:
    return torch.cuda.is_available() and torch.cuda.device_count() >= 2


def first_logprobs(found: Answers) -> torch.Tensor:
    return torch.tensor([x.logprobs[0].logprob for x in found])


def same(found: Answers, other: Answers, length: int) -> float:
    """Share of answers whose first ids are the same."""
    pairs = list(zip(found, other, strict=True))
    return sum(x.ids[:length] == y.ids[:length] for x, y in pairs) / len(pairs)


def assert_near(found: Answers, other: Answers) -> None:
    """Within what bfloat16 rounds: the first step's logprobs and ids, and most first 8 ids."""
    assert torch.allclose(first_logprobs(found), first_logprobs(other), atol=0.35)
    assert same(found, other, 1) >= 0.9
    assert same(found, other, 8) >= 0.5


def assert_rounded_alike(found: Answers, other: Answers, unrounded: Answers) -> None:
    """Two ways that round to 8 bits what they computed alike but for bfloat16's rounding.

    A value that differs by d lands on another step of s with probability d / s, and is then off by
    s: mean square d s, where rounding itself has s^2 / 12. bfloat16's mean d of 2^-9 beside a step
    of 2^-3 (e4m3; e5m2 has 2^-2 and so less) makes the ways differ by sqrt(12 * 2^-6) = 0.43 of
    what either differs from no rounding. The later layers' bfloat16 adds as much at most, in the
    mean square again: 0.61. 64 prompts tell such a ratio to some 10%.
    """
    a, b, exact = (first_logprobs(x) for x in (found, other, unrounded))
    error = max(float((x - exact).square().mean()) for x in (a, b)) ** 0.5
    assert error < 1.0, "not the model"
    assert float((a - b).square().mean()) ** 0.5 < 0.7 * error
    assert same(found, other, 1) >= 0.75


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_float32_gives_the_tokens_of_transformers(tmp_path, name):
    reference = models.make(tmp_path, name)
    prompts, expected = models.clear_cut(reference.model, 32)
    with Engine(tmp_path, EXACT) as engine:
        assert [a.ids for a in engine.generate(prompts, GREEDY)] == expected


def test_graphs_and_eager_agree(wide, unrounded):
    assert_near(unrounded, answers(wide, {"engine.graphs": False}))


def test_few_rows_as_one_kernel_or_as_many(wide):
    """Eight rows at most, so that each captured decode pass is the one kernel's where few rows have
    no other kernels of ours; with these it is that of one row alone."""
    some = {"schedule.max_running": 8}
    many, alone = {**some, "engine.few_rows": False}, {**some, "engine.skinny": False}
    for changes in (alone, some):
        assert_near(answers(wide, changes), answers(wide, many))
    narrow = {**alone, "model.quantization": "fp8"}
    assert_near(answers(wide, narrow), answers(wide, {**narrow, "engine.graphs": False}))


def test_decode_rows_in_captured_prefills(wide):
    """Of 64 prompts 12 run at a time, so that each that joins does so beside rows that decode."""
    alone, joined = (
        answers(wide, {"schedule.max_running": 12, "schedule.mixed_tokens": most})
        for most in (1, 1024)
    )
    assert_near(alone, joined)


def test_prefills_beside_decode_steps(wide):
    """Every prefill that comes while a row decodes runs at the same time as its steps."""
    never, always = (
        answers(wide, {"schedule.max_running": 24, "schedule.mixed_tokens": 1,
                       "engine.few_rows": False, "schedule.beside_rows": rows,
                       "schedule.beside_filled": 0.0})
        for rows in (10**6, 1)
    )  # fmt: skip
    assert_near(never, always)


def test_decode_rows_by_either_kernel(wide, unrounded):
    assert_near(unrounded, answers(wide, {"engine.even_decode": False}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_matmuls_of_few_rows_by_either_kernel(wide, dtype):
    some = {"engine.few_rows": False, "model.dtype": dtype}
    library = answers(wide, {**some, "engine.skinny": False})
    assert_near(answers(wide, some), library)
    narrow = {**some, "model.quantization": "fp8"}
    other = answers(wide, {**narrow, "engine.skinny": False})
    assert_rounded_alike(answers(wide, narrow), other, library)


def test_shared_pages_read_once(wide):
    alone, shared = (
        answers(wide, {"schedule.page_size": 16, **changes})
        for changes in ({}, {"schedule.share_from": 1})
    )
    assert_near(alone, shared)


def test_rounding_before_the_linears(wide, unrounded):
    after, before = (
        answers(wide, {"model.quantization": "fp8", "engine.fuse_rounding": fused})
        for fused in (False, True)
    )
    assert_rounded_alike(after, before, unrounded)


def test_keys_of_8_bits_captured_eager_and_plain(wide, unrounded):
    """e5m2, whose kernels are compiled for a minute, is in the kernels' own test."""
    captured, eager, plain = (
        answers(wide, {"model.kv_dtype": "e4m3", **changes})
        for changes in ({}, {"engine.graphs": False}, {"engine.attention": "reference"})
    )
    assert_rounded_alike(captured, eager, unrounded)
    assert_rounded_alike(captured, plain, unrounded)


class Gate:
    """Keeps chores from being done until it is opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open = False
        chore = DeviceExecutor.chore

        def kept(executor: DeviceExecutor, busy: bool) -> Callable[[], None] | None:
            return chore(executor, busy) if self.open else None

        patch.setattr(DeviceExecutor, "chore", kept)


SOME = {"engine.graph_batch_sizes": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 56, 64),
        "engine.ready_early": True}  # fmt: skip


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def asked(engine: Engine) -> Answers:
    return engine.generate(models.prompts(), {**GREEDY, "logprobs": 0})


def test_before_while_and_after_the_rest_is_captured(wide, monkeypatch):
    """First with every size padded that is missing; then with captures among the steps."""
    monkeypatch.setattr(captures, "ASKED", 1)
    monkeypatch.setattr(loop, "CHORES_SHARE", 1)
    gate = Gate(monkeypatch)
    with Engine(wide, {**FAST, **SOME}) as engine:
        begun = engine.facts["captured"]
        before = asked(engine)
        assert engine.facts["captured"] == begun < engine.facts["passes"]
        gate.open = True
        meanwhile = asked(engine)
        assert engine.facts["captured"] > begun
        until(lambda: engine.facts["captured"] == engine.facts["passes"])
        after = asked(engine)
        assert "capture_failed" not in engine.facts
    assert_near(before, meanwhile)
    assert_near(before, after)
    with Engine(wide, {**FAST, **SOME, "engine.profile_steps": 1}) as engine:
        assert engine.facts["captured"] == engine.facts["passes"]
        assert_near(after, asked(engine))


@pytest.mark.parametrize("fault", ["memory", "forbidden", "before"])
def test_a_capture_that_fails_leaves_an_engine_that_serves(wide, monkeypatch, fault):
    """memory: torch has none while a pass is captured. forbidden: something is done then that ends
    the capture. before: torch has none for the pass itself."""
    gate, body = Gate(monkeypatch), DecodeGraphs._body

    def failing(graphs: DecodeGraphs, size: int) -> None:
        body(graphs, size)
        if not gate.open or torch.cuda.is_current_stream_capturing() == (fault == "before"):
            return
        if fault == "forbidden":
            torch.cuda.synchronize()
        raise torch.OutOfMemoryError("none is left")

    monkeypatch.setattr(DecodeGraphs, "_body", failing)
    with Engine(wide, {**FAST, **SOME}) as engine:
        before = asked(engine)
        gate.open = True
        until(lambda: "capture_failed" in engine.facts)
        have = engine.facts["captured"]
        after = asked(engine)
        torch.cuda.empty_cache()  # which torch refuses while it thinks something is captured
        assert_near(after, asked(engine))
        assert engine.facts["captured"] == have < engine.facts["passes"]
    assert_near(before, after)


@pytest.mark.skipif(not two_gpus(), reason="needs two GPUs")
@pytest.mark.parametrize("name,changes", [("llama", {"vocab_size": 301}), ("qwen3", {})])
def test_two_gpus_give_the_tokens_of_transformers(tmp_path, name, changes):
    reference = models.make(tmp_path, name, **changes)
    prompts, expected = models.clear_cut(reference.model, 32)
    with Engine(tmp_path, {**EXACT, "engine.tp": 2}) as engine:
        assert [a.ids for a in engine.generate(prompts, GREEDY)] == expected


@pytest.mark.skipif(not two_gpus(), reason="needs two GPUs")
def test_two_gpus_agree_with_one_in_captured_passes(wide, unrounded):
    with Engine(wide, {**FAST, **SOME, "engine.tp": 2}) as engine:
        assert engine.facts["captured"] == engine.facts["passes"], "all before they serve"
        assert_near(unrounded, asked(engine))
