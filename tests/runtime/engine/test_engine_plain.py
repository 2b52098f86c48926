"""Where a kernel cannot be compiled plain torch computes, says so, and gives the same tokens."""

from __future__ import annotations

import ast
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from appliance.kernels.ops import compile_failures
from appliance.kernels.ops import select as select_ops
from appliance.runtime import offline
from appliance.runtime.config import RuntimeConfig
from appliance.runtime.engine import kit
from appliance.runtime.engine.kit import Kit
from appliance.runtime.engine.plain import first_line, in_plain_torch, memory_short
from appliance.runtime.engine.rank import RankBuilder
from appliance.runtime.model.attention import select
from appliance.runtime.model.attention.reference import ReferenceBackend
from appliance.runtime.model.parallel.mesh import Mesh
from appliance.runtime.offline import Engine
from appliance.runtime.plan import Plan, resolve
from tests.reference import models

SETTINGS = {"model.dtype": "float32", "engine.device": "cpu", "engine.threads": 1,
            "engine.max_total_tokens": 2000, "schedule.max_running": 4}  # fmt: skip
GREEDY = {"max_tokens": 20, "temperature": 0.0, "ignore_eos": True}


class Failing(ReferenceBackend):
    """Attention whose kernels are compiled with its first pass, which fails."""

    def __init__(self, device: torch.device, error: Exception) -> None:
        super().__init__(device)
        self._error = error

    def plan(self, *args: Any) -> None:
        raise self._error


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("llama")
    models.make(made, "llama")
    return made


def tokens(folder: Path) -> list[int]:
    with Engine(folder, SETTINGS) as engine:
        [answer] = engine.generate([models.prompts()[0]], GREEDY)
    return list(answer.ids)


def expected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    with monkeypatch.context() as patch:
        patch.setattr(offline, "resolve", resolve)
        return tokens(folder)


def fail(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setitem(
        select.BACKENDS, ("gqa", "flashinfer"), lambda wanted: Failing(wanted.device, error)
    )


def test_a_compiler_that_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, built: list[dict[str, Any]]
) -> None:
    want = expected(folder, monkeypatch)
    fail(monkeypatch, RuntimeError("Ninja is not there\nlong output"))
    assert tokens(folder) == want
    assert built[-1]["plain"] == "RuntimeError: Ninja is not there"


FAILURES = [
    FileNotFoundError(2, "No such file or directory", "ninja"),
    PermissionError(13, "Permission denied", "/var/cache"),
    OSError("libcudart.so.12: cannot open shared object file"),
    ModuleNotFoundError("No module named 'flashinfer.jit'"),
    subprocess.CalledProcessError(1, ["gcc", "launcher.c"]),
    subprocess.TimeoutExpired(["nvcc"], 60),
    RuntimeError("Cannot find ptxas"),
    RuntimeError("Ninja build failed. Ninja output:\ncc1plus: out of memory allocating 64 bytes"),
    RuntimeError("few_rows.cu was not compiled: error: expected a ;"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)
def test_what_compilers_raise_is_done_without(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch, built: list[dict[str, Any]]
) -> None:
    fail(monkeypatch, error)
    Engine(folder, SETTINGS).close()
    assert built[-1]["plain"] == first_line(error)


def test_what_triton_raises_is_known() -> None:
    triton = pytest.importorskip("triton")
    known = compile_failures()
    for error in (
        triton.compiler.errors.CompilationError("x", ast.parse("x").body[0], "no such name"),
        triton.runtime.errors.PTXASError("unsupported .version 9.0"),
        triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory"),
    ):
        assert isinstance(error, known) and not memory_short(error)


MISTAKES = [
    TypeError("plan() takes 2 positional arguments"),
    AttributeError("'NoneType' object has no attribute 'run'"),
    KeyError(128),
    IndexError("index 4 is out of bounds"),
    NameError("name 'indptr' is not defined"),
    ValueError("operands could not be broadcast together"),
    AssertionError("4 rows are too many"),
    MemoryError(),
    torch.OutOfMemoryError("full"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA says <CUresult.CUDA_ERROR_OUT_OF_MEMORY: 2>"),
]


@pytest.mark.parametrize("error", MISTAKES, ids=lambda e: type(e).__name__)
def test_what_is_no_compiler_that_fails(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch, built: list[dict[str, Any]]
) -> None:
    """Mistakes of our own are not computed around, and memory that is short is told as such."""
    fail(monkeypatch, error)
    with pytest.raises(type(error)) as caught:
        Engine(folder, SETTINGS).close()
    assert caught.value is error and not built


def test_a_library_that_does_not_load_is_as_one_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unloadable(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise OSError("libcudart.so.12: cannot open shared object file")

    module = Unloadable("appliance.kernels.cuda_ops")
    module.__spec__ = None
    monkeypatch.setitem(sys.modules, "appliance.kernels.cuda_ops", module)
    with pytest.raises(ImportError, match="libcudart"):
        select_ops(torch.device("cuda"), torch.bfloat16)


def test_without_triton_the_others_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch for CPUs comes without it."""
    monkeypatch.setitem(sys.modules, "triton.errors", None)
    assert set(compile_failures()) == {
        RuntimeError, OSError, subprocess.SubprocessError, ImportError
    }  # fmt: skip


def test_kernels_that_are_not_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, built: list[dict[str, Any]]
) -> None:
    want = expected(folder, monkeypatch)

    def missing(wanted: Any) -> Any:
        raise ModuleNotFoundError("No module named 'flashinfer'")

    monkeypatch.setitem(select.BACKENDS, ("gqa", "flashinfer"), missing)
    assert tokens(folder) == want
    assert "flashinfer" in built[-1]["plain"]


def test_compiling_is_a_phase_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, built: list[dict[str, Any]]
) -> None:
    told: list[tuple[str, str]] = []
    init = RankBuilder.__init__

    def listening(self: RankBuilder, *args: Any) -> None:
        init(self, *args[:-1], lambda name, progress, detail: told.append((name, detail)))

    monkeypatch.setattr(RankBuilder, "__init__", listening)
    monkeypatch.setitem(select.BACKENDS, ("gqa", "flashinfer"), lambda wanted: Late(wanted.device))
    tokens(folder)
    names = list(dict.fromkeys(name for name, _ in told))
    assert names == ["load", "compile", "plan"]
    assert ("compile", "kernels of decode") in told
    assert "plain" not in built[-1] and built[-1]["compile_s"] >= 0


def kit_of(**engine: Any) -> Kit:
    """One on which nothing can be computed."""
    config = in_plain_torch(msgspec.convert(
        {"run": "x", "dir": "/x", "model": {"path": "/x", "id": "x"}}, RuntimeConfig
    ))  # fmt: skip
    config = msgspec.structs.replace(
        config, engine=msgspec.structs.replace(config.engine, **engine)
    )
    loaded: Any = type("Loaded", (), {"model": None})()
    none: Any = None
    return Kit(config, none, Mesh(), none, torch.device("cpu"), loaded, none, none, none, {})


def test_the_kernel_of_few_rows_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = kit_of()
    assert plain.few_rows([]) is None and not plain.facts
    monkeypatch.setattr(kit, "why_not", lambda *args: "")

    def refused(*args: Any) -> Any:
        raise RuntimeError("cuda-bindings cannot be imported: no nvrtc")

    monkeypatch.setattr(kit, "FewRows", refused)
    wanted = kit_of(few_rows=True)
    assert wanted.few_rows([]) is None
    assert wanted.facts == {"few_rows": "cuda-bindings cannot be imported: no nvrtc"}


def test_what_compilers_say_is_cut_short() -> None:
    assert first_line(RuntimeError("\n  nvcc: not found\nmore")) == "RuntimeError: nvcc: not found"
    assert len(first_line(ValueError("x" * 5000))) == 300
    assert first_line(OSError()) == "OSError: "
