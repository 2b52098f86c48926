"""appliance kernels build, and where compiled kernels lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance import paths
from appliance.bench import offline
from appliance.cli.main import run as appliance
from appliance.errors import HardwareError
from appliance.supervisor.child import child_environment


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APPLIANCE_CACHE_DIR", str(tmp_path))
    for name in paths.kernel_variables():
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_engine_is_loaded_and_ends(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert appliance(["kernels", "build", "--set", "engine.device=cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["device"] == "cpu" and told["new_files"] == 0 and told["ready_s"] > 0
    assert str(cache / "triton") in told["folders"]


def test_what_was_compiled_is_counted_and_can_be_pruned(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = []

    def ready(task: offline.Inside) -> dict[str, object]:
        tasks.append(task)
        for place in ("triton/a.cubin", ".cache/flashinfer/0.6/x.so", "inductor/ab/y.so"):
            file = cache / place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes(1000))
        return {"ready_s": 20.0, "pages": 10, "compile_s": 11.5, "plain": ""}

    monkeypatch.setattr(offline, "ready", ready)
    words = ["kernels", "build", "--context", "512", "--json"]
    assert appliance(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["new_files"], told["new_bytes"], told["compile_s"]) == (3, 3000, 11.5)
    assert tasks[0].settings["model.load_format"] == "dummy"
    assert tasks[0].settings["model.context"] == 512
    assert appliance(words) == 0
    assert json.loads(capsys.readouterr().out)["new_files"] == 0
    assert appliance(["cache", "prune", "--kernels", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] == 3000
    assert not (cache / "triton").exists()


def test_a_kernel_that_cannot_be_compiled_is_a_failure(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"ready_s": 3.0, "pages": 10, "compile_s": 0.1, "plain": "nvcc was not found"}
    monkeypatch.setattr(offline, "ready", lambda task: facts)
    assert appliance(["kernels", "build"]) == HardwareError.exit_code
    said = capsys.readouterr().err
    assert "nvcc was not found" in said and "appliance doctor" in said


def test_processes_of_ours_keep_kernels_where_the_cache_is(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert child_environment()["TRITON_CACHE_DIR"] == str(cache / "triton")
    assert child_environment()["FLASHINFER_WORKSPACE_BASE"] == str(cache)
    assert child_environment()["TORCHINDUCTOR_CACHE_DIR"] == str(cache / "inductor")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    assert child_environment()["TRITON_CACHE_DIR"] == "/elsewhere"
    assert paths.kernel_variables()["CUDA_CACHE_PATH"] == str(cache / "cuda")
