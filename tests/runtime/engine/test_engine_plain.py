"""Where a kernel cannot be compiled plain torch computes, says so, and gives the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from appliance.runtime import offline
from appliance.runtime.engine import rank
from appliance.runtime.engine.plain import first_line, in_plain_torch
from appliance.runtime.engine.rank import RankBuilder
from appliance.runtime.model.attention import select
from appliance.runtime.model.attention.reference import ReferenceBackend
from appliance.runtime.offline import Engine
from appliance.runtime.plan import Plan, resolve
from tests.reference import models

SETTINGS = {"model.dtype": "float32", "engine.device": "cpu", "engine.threads": 1,
            "engine.max_total_tokens": 2000, "schedule.max_running": 4}  # fmt: skip
GREEDY = {"max_tokens": 20, "temperature": 0.0, "ignore_eos": True}


class NoCompiler(ReferenceBackend):
    """Attention whose kernels are compiled with its first pass, by a compiler that is missing."""

    says = "Ninja is not there\nlong output"

    def plan(self, *args: Any) -> None:
        raise RuntimeError(self.says)


class Late(ReferenceBackend):
    """One whose kernels are compiled well."""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The plan chooses the attention of GPUs; what each rank told is kept."""
    facts: list[dict[str, Any]] = []
    build = RankBuilder.build

    def planned(*args: Any) -> Plan:
        plan = resolve(*args)
        engine = msgspec.structs.replace(plan.config.engine, attention="flashinfer")
        config = msgspec.structs.replace(plan.config, engine=engine)
        return Plan(config, plan.answers)

    def kept(self: RankBuilder) -> Any:
        done = build(self)
        facts.append(done.facts)
        return done

    monkeypatch.setattr(offline, "resolve", planned)
    monkeypatch.setattr(RankBuilder, "build", kept)
    return facts


def tokens(folder: Path) -> list[int]:
    with Engine(folder, SETTINGS) as engine:
        [answer] = engine.generate([models.prompts()[0]], GREEDY)
    return list(answer.ids)


def expected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    with monkeypatch.context() as patch:
        patch.setattr(offline, "resolve", resolve)
        return tokens(folder)


def test_a_compiler_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[dict[str, Any]]
) -> None:
    models.make(tmp_path, "llama")
    want = expected(tmp_path, monkeypatch)
    monkeypatch.setitem(
        select.BACKENDS, ("gqa", "flashinfer"), lambda wanted: NoCompiler(wanted.device)
    )
    assert tokens(tmp_path) == want
    assert built[-1]["plain"] == "RuntimeError: Ninja is not there"


def test_kernels_that_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[dict[str, Any]]
) -> None:
    models.make(tmp_path, "llama")
    want = expected(tmp_path, monkeypatch)

    def missing(wanted: Any) -> Any:
        raise ModuleNotFoundError("No module named 'flashinfer'")

    monkeypatch.setitem(select.BACKENDS, ("gqa", "flashinfer"), missing)
    assert tokens(tmp_path) == want
    assert "flashinfer" in built[-1]["plain"]


def test_compiling_is_a_phase_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[dict[str, Any]]
) -> None:
    models.make(tmp_path, "llama")
    told: list[tuple[str, str]] = []
    init = RankBuilder.__init__

    def listening(self: RankBuilder, *args: Any) -> None:
        init(self, *args[:-1], lambda name, progress, detail: told.append((name, detail)))

    monkeypatch.setattr(RankBuilder, "__init__", listening)
    monkeypatch.setitem(select.BACKENDS, ("gqa", "flashinfer"), lambda wanted: Late(wanted.device))
    tokens(tmp_path)
    names = list(dict.fromkeys(name for name, _ in told))
    assert names == ["load", "compile", "plan"]
    assert ("compile", "kernels of decode") in told
    assert "plain" not in built[-1] and built[-1]["compile_s"] >= 0


def test_memory_that_is_short_is_no_compiler_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: list[dict[str, Any]]
) -> None:
    models.make(tmp_path, "llama")

    class Full(ReferenceBackend):
        def plan(self, *args: Any) -> None:
            raise torch.OutOfMemoryError("full")

    monkeypatch.setitem(select.BACKENDS, ("gqa", "flashinfer"), lambda wanted: Full(wanted.device))
    with pytest.raises(torch.OutOfMemoryError):
        Engine(tmp_path, SETTINGS).close()


def test_the_kernel_of_few_rows_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = RankBuilder.__new__(RankBuilder)
    builder._facts, builder._spec = {}, None  # type: ignore[assignment]
    builder._mesh = rank.Mesh()
    builder._config = in_plain_torch(msgspec.convert(
        {"run": "x", "dir": "/x", "model": {"path": "/x", "id": "x"}}, rank.RuntimeConfig
    ))  # fmt: skip
    loaded: Any = type("Loaded", (), {"model": None})()
    assert builder._few_rows(loaded, []) is None and not builder._facts
    engine = msgspec.structs.replace(builder._config.engine, few_rows=True)
    builder._config = msgspec.structs.replace(builder._config, engine=engine)
    monkeypatch.setattr(rank, "why_not", lambda *args: "")

    def refused(*args: Any) -> Any:
        raise RuntimeError("cuda-bindings cannot be imported: no nvrtc")

    monkeypatch.setattr(rank, "FewRows", refused)
    assert builder._few_rows(loaded, []) is None
    assert builder._facts == {"few_rows": "cuda-bindings cannot be imported: no nvrtc"}


def test_what_compilers_say_is_cut_short() -> None:
    assert first_line(RuntimeError("\n  nvcc: not found\nmore")) == "RuntimeError: nvcc: not found"
    assert len(first_line(ValueError("x" * 5000))) == 300
    assert first_line(OSError()) == "OSError: "
