"""Drivers, builds of torch and GPUs that are not here: what is told, and the line that cures it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_hardware import FakeNvml

from appliance.cli import conditions, doctor, toolkit
from appliance.hardware import HardwareSnapshot, detect

GPUS = {"T4": 75, "A100": 80, "L4": 89, "H100": 90, "B200": 100, "RTX 5090": 120, "V100": 70}
CU126 = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"
CU128 = (
    "pip install --force-reinstall 'torch==2.11.*' "
    "--index-url https://download.pytorch.org/whl/cu128"
)
CU130 = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
DRIVER = "sudo apt-get install nvidia-driver-580-server-open && sudo reboot"


@pytest.fixture(autouse=True)
def ubuntu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The root of a system that is no container."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("NAME=Ubuntu\nID=ubuntu\n")
    monkeypatch.setattr(toolkit, "ROOT", tmp_path)
    monkeypatch.setattr(toolkit, "install", lambda: "pip install")
    monkeypatch.setattr(conditions, "_version", lambda name: "2.13.0")
    return tmp_path


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., HardwareSnapshot]:
    """The machine as a stub of the driver tells it."""

    def machine(driver: str, cuda: int, *names: str) -> HardwareSnapshot:
        fake = FakeNvml(set())
        sms = [GPUS[name] for name in names]
        answers: dict[str, Any] = {
            "nvmlSystemGetDriverVersion": lambda: driver,
            "nvmlSystemGetCudaDriverVersion_v2": lambda: cuda,
            "nvmlDeviceGetCount": lambda: len(names),
            "nvmlDeviceGetName": lambda h: f"NVIDIA {names[h]}",
            "nvmlDeviceGetCudaComputeCapability": lambda h: divmod(sms[h], 10),
            "nvmlDeviceGetComputeRunningProcesses": lambda h: [],
        }
        for name, answer in answers.items():
            setattr(fake, name, answer)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return detect()

    return machine


@pytest.mark.parametrize(
    ("driver", "cuda", "gpus", "torch", "says", "fix"),
    [
        # an old driver under a torch for CUDA 13
        ("535.183.01", 12020, ["A100"], "13.0", "needs driver 580", f"{CU126}\n{DRIVER}"),
        ("550.54", 12040, ["L4", "L4"], "13.0", "needs driver 580", CU126),
        ("570.86", 12080, ["H100"], "13.0", "needs driver 580", CU128),
        ("570.86", 12080, ["A100", "B200"], "13.2", "needs driver 580", CU128),
        ("470.57", 11040, ["T4"], "13.0", "needs driver 580", DRIVER),
        ("470.57", 11040, ["T4"], "12.6", "needs driver 525", DRIVER),
        # a torch for CPUs beside GPUs
        ("580.95", 13000, ["H100"], "", "built without CUDA", CU130),
        ("570.86", 12080, ["H100"], "", "built without CUDA", CU128),
        ("535.10", 12020, ["T4"], "", "built without CUDA", CU126),
        ("470.57", 11040, ["T4"], "", "built without CUDA", DRIVER),
        # GPUs that are too new or too old for the build
        ("580.95", 13000, ["B200"], "12.6", "10.0 is newer than 9.0", CU130),
        ("580.95", 13000, ["H100", "RTX 5090"], "12.4", "GPU 1, NVIDIA RTX 5090: 12.0", CU130),
        ("570.86", 12080, ["B200"], "12.6", "10.0 is newer than 9.0", CU128),
        ("580.95", 13000, ["V100"], "13.0", "7.0 is older than 7.5", CU126),
    ],
)
def test_what_does_not_go_together(
    nvml: Callable[..., HardwareSnapshot],
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    cuda: int,
    gpus: list[str],
    torch: str,
    says: str,
    fix: str,
) -> None:
    monkeypatch.setattr(conditions, "torch_cuda", lambda: torch)
    check = conditions.torch_fits(nvml(driver, cuda, *gpus))
    assert check.verdict == "block" and says in check.found
    assert check.fix.startswith(fix)


@pytest.mark.parametrize(
    ("driver", "cuda", "gpus", "torch"),
    [
        ("580.95.05", 13000, ["H100", "B200"], "13.0"),
        ("595.10", 13020, ["T4", "RTX 5090"], "13.2"),
        ("535.183.01", 12020, ["A100", "L4"], "12.6"),
        ("525.60", 12000, ["H100"], "12.8"),
        ("580.95", 13000, ["H100"], "12.6"),
    ],
)
def test_what_goes_together(
    nvml: Callable[..., HardwareSnapshot],
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    cuda: int,
    gpus: list[str],
    torch: str,
) -> None:
    monkeypatch.setattr(conditions, "torch_cuda", lambda: torch)
    assert conditions.torch_fits(nvml(driver, cuda, *gpus)).verdict == "ok"


def test_each_line_that_is_advised_cures_it(nvml: Callable[..., HardwareSnapshot]) -> None:
    for driver in ("470.57", "525.60", "535.1", "570.8", "580.1", "600.1"):
        for gpu in GPUS:
            machine = nvml(driver, 12000, gpu)
            best = toolkit.build_for(machine)
            if best is None:
                continue
            cuda = f"{best.cuda[2:4]}.{best.cuda[4:]}"
            assert toolkit.misfit(cuda, machine) is None, (driver, gpu, best)


def test_doctor_shows_both_ways_out(
    nvml: Callable[..., HardwareSnapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "torch_cuda", lambda: "13.0")
    found = {c.name: c for c in doctor.examine(nvml("535.183.01", 12020, "A100"), 8000)}
    assert found["torch"].verdict == "block" and found["torch"].fix.count("\n") == 1


def test_torch_that_is_not_there(
    nvml: Callable[..., HardwareSnapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "torch_cuda", lambda: None)
    assert conditions.torch_fits(nvml("580.1", 13000, "H100")).fix == CU130
    assert conditions.torch_fits(nvml("580.1", 13000)).fix == "pip install torch"


@pytest.mark.parametrize(
    ("versions", "says", "fix"),
    [
        ({}, None, ""),
        ({"flashinfer-cubin": "0.6.14", "flashinfer-jit-cache": "0.6.14+cu130"}, None, ""),
        (
            {"flashinfer-cubin": "0.6.13"},
            "0.6.13 beside flashinfer-python 0.6.14",
            "pip install --force-reinstall --no-deps flashinfer-cubin==0.6.14",
        ),
        (
            {"flashinfer-jit-cache": "0.6.14+cu129"},
            "made for cu129, torch for cu130",
            "pip install --force-reinstall --no-deps flashinfer-jit-cache==0.6.14 "
            "--index-url https://flashinfer.ai/whl/cu130",
        ),
    ],
)
def test_compiled_kernels_of_another_version(
    nvml: Callable[..., HardwareSnapshot],
    monkeypatch: pytest.MonkeyPatch,
    versions: dict[str, str],
    says: str | None,
    fix: str,
) -> None:
    monkeypatch.setattr(conditions, "torch_cuda", lambda: "13.0")
    held = {"flashinfer-python": "0.6.14"} | versions
    monkeypatch.setattr(conditions, "_version", lambda name: held.get(name, "?"))
    check = conditions.flashinfer(nvml("580.1", 13000, "H100"))
    assert (check.verdict, check.fix) == (("block", fix) if says else ("ok", ""))
    assert (says or "0.6.14") in check.found
    assert conditions.flashinfer(nvml("580.1", 13000)).verdict == "ok"
    held.clear()
    assert conditions.flashinfer(nvml("580.1", 13000, "H100")).verdict == "block"


def test_a_driver_that_does_not_answer_or_is_not_there(ubuntu: Path) -> None:
    assert "reboot" in toolkit.broken_driver("does not answer: Driver/library version mismatch")
    assert "nvidia-ml-py" in toolkit.broken_driver("the package nvidia-ml-py is not installed")
    assert "dmesg" in toolkit.broken_driver("GPU 0 does not answer: Unknown Error")
    host = HardwareSnapshot(8, 64 << 30, 60 << 30)
    assert [c.fix for c in doctor._gpus(host)] == [""]
    for name, vendor, kind in (
        ("0000:00:01.0", "0x8086", "0x030000"),
        ("0000:00:02.0", "0x10de", "0x040300"),
        ("0000:0a:00.0", "0x10de", "0x030200"),
    ):
        folder = ubuntu / "sys/bus/pci/devices" / name
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(vendor + "\n")
        (folder / "class").write_text(kind + "\n")
    (check,) = doctor._gpus(host)
    assert check.verdict == "warn" and check.fix == DRIVER
    assert "one at PCI 0000:0a:00.0, and no driver" in check.found


def test_the_driver_by_system(ubuntu: Path) -> None:
    (ubuntu / "etc/os-release").write_text('ID=pop\nID_LIKE="ubuntu debian"\n')
    assert toolkit.driver_line() == DRIVER
    (ubuntu / "etc/os-release").write_text("ID=arch\n")
    assert "nvidia.com/drivers" in toolkit.driver_line()
    (ubuntu / ".dockerenv").touch()
    assert "on the host" in toolkit.driver_line()
    assert "nvidia-container-toolkit" in toolkit.broken_driver("GPU 0 does not answer")


def test_packages_go_into_this_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/a b/python")
    pip, uv = tmp_path / "bin/pip", tmp_path / "uv"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert toolkit.install() == "'/a b/python' -m pip install"
    monkeypatch.setattr(shutil, "which", lambda name: str(uv) if name == "uv" else None)
    assert toolkit.install() == "uv pip install --python '/a b/python'"
    pip.parent.mkdir()
    pip.touch()
    assert toolkit.install() == "'/a b/python' -m pip install"
    monkeypatch.setattr(shutil, "which", lambda name: str(pip) if name == "pip" else None)
    assert toolkit.install() == "pip install"
