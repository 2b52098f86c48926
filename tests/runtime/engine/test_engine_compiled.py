"""engine.compile: the same tokens, compiled once at start, never while serving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.errors import HardwareError
from appliance.kernels import compiled
from appliance.kernels.compiled import CompiledChains, lacking
from appliance.runtime.engine import load
from appliance.runtime.offline import Engine
from tests.reference import models

CPU = torch.device("cpu")
SETTINGS = {"model.dtype": "float32", "engine.device": "cpu", "engine.threads": 1,
            "engine.max_total_tokens": 20000, "schedule.max_running": 24}  # fmt: skip
NEW = 12
GREEDY = {"max_tokens": NEW, "temperature": 0.0, "ignore_eos": True}
needs_compiler = pytest.mark.skipif(bool(lacking(CPU)), reason=f"no {lacking(CPU)} is installed")


@pytest.fixture(scope="module", params=["llama", "qwen2-window", "qwen3"])
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> models.Reference:
    return models.make(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[CompiledChains]:
    """What each engine compiles."""
    kept: list[CompiledChains] = []

    class Kept(CompiledChains):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            kept.append(self)

    monkeypatch.setattr(load, "CompiledChains", Kept)
    return kept


def asked(count: int) -> Iterator[dict[str, Any]]:
    """Every way to choose tokens, in turn."""
    ways: list[dict[str, Any]] = [
        {"temperature": 0.8},
        {"temperature": 1.1, "top_p": 0.8, "min_p": 0.02},
        {"temperature": 0.7, "top_k": 20, "frequency_penalty": 0.4},
        {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.2},
        {"temperature": 0.0, "regex": "[a-f0-9]{4,40}"},
        {"temperature": 0.0, "logprobs": 2},
    ]
    for i in range(count):
        yield {"max_tokens": 6 + i % 7, "ignore_eos": True, "seed": i, **ways[i % len(ways)]}


@needs_compiler
def test_greedy_tokens_are_those_of_transformers(
    reference: models.Reference, made: list[CompiledChains]
) -> None:
    prompts, expected = models.clear_cut(reference.model, NEW, 4, 4)
    with Engine(reference.folder, {**SETTINGS, "engine.compile": True}) as engine:
        assert [a.ids for a in engine.generate(prompts, GREEDY)] == expected
        assert engine.facts["compile_chains_s"] > 0
    assert [chains.graphs for chains in made] == [4]


@needs_compiler
def test_tokens_are_those_of_plain_torch_in_every_batch(
    reference: models.Reference, made: list[CompiledChains]
) -> None:
    """Rows come and go, are put back and prefilled with what they had, and join in any number:
    what was compiled at start takes them all."""
    prompts = models.prompts()[::2]
    wanted = list(asked(len(prompts)))
    found = []
    for settings in (
        {},
        {"engine.compile": True, "schedule.chunk": 32, "schedule.retract_every": 5},
        {"engine.compile": True, "schedule.max_running": 3, "schedule.depth": 0},
    ):
        with Engine(reference.folder, {**SETTINGS, **settings}) as engine:
            found.append([a.ids for a in engine.generate(prompts, wanted)])
            stats = engine.scheduler.stats()
            assert (stats.retractions > 0) == ("schedule.retract_every" in settings)
    assert found[1] == found[0] and found[2] == found[0]
    assert [chains.graphs for chains in made] == [4, 4], "something was compiled while serving"


def test_without_a_compiler_the_start_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.make(tmp_path, "llama")
    loaded = []
    monkeypatch.setattr(load.weights, "load", lambda *args: loaded.append(args))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(HardwareError, match=r"no g\+\+ is found") as refused:
        Engine(tmp_path, {**SETTINGS, "engine.compile": True})
    assert refused.value.code == "APL-HW-008" and "apt install g++" in refused.value.hint
    assert not loaded


def test_a_compiler_that_fails_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody who asked for it is served without it unawares."""
    models.make(tmp_path, "llama")

    def fails(*args: Any) -> None:
        raise RuntimeError("CppCompileError: cc1plus: out of date\nmuch more")

    monkeypatch.setattr(load, "lacking", lambda device: "")
    monkeypatch.setattr(compiled.Compiled, "build", fails)
    with pytest.raises(HardwareError, match="cc1plus: out of date") as refused:
        Engine(tmp_path, {**SETTINGS, "engine.compile": True})
    assert refused.value.code == "APL-HW-008" and "much more" not in str(refused.value)
