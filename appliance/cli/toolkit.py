"""Driver, CUDA, torch and kernels compared: whether they go together, and the line that cures it.

What each build of torch has is in PyTorch's release matrix, what CUDA asks of a driver in NVIDIA's
table of minor-version compatibility. No torch is imported here.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from appliance.hardware import HardwareSnapshot

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""CUDA major version that torch was built for -> driver branch it needs on Linux."""
_TORCH = "https://download.pytorch.org/whl"
_FLASHINFER = "https://flashinfer.ai/whl"
NEWEST_DRIVER = 580
"""The branch that is advised: CUDA 13 needs it, and its open modules know each GPU served here."""
ROOT = Path("/")


class Build(NamedTuple):
    """A build of torch. most: highest compute capability that it has kernels for; `wanted` is what
    to install of it, since builds go out of use with a release of torch."""

    cuda: str
    driver: int
    least: int
    most: int
    wanted: str


BUILDS = (
    Build("cu130", 580, 75, 999, "torch"),
    Build("cu126", 525, 50, 89, "torch"),
    Build("cu128", 525, 75, 120, "torch==2.11.*"),
)
"""The best first. That for CUDA 13 has a form that newer GPUs compile for themselves."""

_KERNELS = {(11, 8): (37, 90), (12, 8): (70, 129), (12, 9): (70, 999)}
"""Lowest and highest compute capability of installed builds, by their CUDA version."""


def install() -> str:
    """How packages get into this very Python, as typed in a shell."""
    here = Path(sys.prefix) / "bin"
    found = shutil.which("pip")
    if found and Path(found).parent == here:
        return "pip install"
    if not (here / "pip").exists() and shutil.which("uv"):
        return f"uv pip install --python {shlex.quote(sys.executable)}"
    return f"{shlex.quote(sys.executable)} -m pip install"


def branch_of(driver: str) -> int:
    """580 of 580.95.05."""
    head = driver.partition(".")[0]
    return int(head) if head.isdigit() else 0


def build_for(hardware: HardwareSnapshot) -> Build | None:
    """The torch that this driver and all of these GPUs take; None: none does before the driver is
    a newer one."""
    branch = branch_of(hardware.driver)
    for build in BUILDS:
        fits = all(build.least <= gpu.sm <= build.most for gpu in hardware.gpus)
        if fits and branch >= build.driver:
            return build
    return None


def torch_line(build: Build) -> str:
    wanted = shlex.quote(build.wanted)
    return f"{install()} --force-reinstall {wanted} --index-url {_TORCH}/{build.cuda}"


def driver_line() -> str:
    """A newer driver on this system; where that cannot be known, what to look for."""
    branch = NEWEST_DRIVER
    if _in_container():
        return f"driver {branch} or later on the host: this is a container"
    system = _system()
    if "ubuntu" in (system.get("ID", ""), *system.get("ID_LIKE", "").split()):
        return f"sudo apt-get install nvidia-driver-{branch}-server-open && sudo reboot"
    return f"driver {branch} or later, from https://www.nvidia.com/drivers, then reboot"


def _in_container() -> bool:
    return any((ROOT / name).exists() for name in (".dockerenv", "run/.containerenv"))


def _system() -> dict[str, str]:
    try:
        lines = (ROOT / "etc/os-release").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {name: value.strip("\"'") for name, _, value in pairs}


def kernels_of(cuda: str) -> tuple[int, int]:
    """Lowest and highest compute capability that a torch for this CUDA has kernels for."""
    major, minor = _pair(cuda)
    if major >= 13:
        return (75, 999)
    return _KERNELS.get((major, minor), (50, 90))


def _pair(cuda: str) -> tuple[int, int]:
    numbers = [int(n) if n.isdigit() else 0 for n in cuda.split(".")]
    return (numbers[0], numbers[1] if len(numbers) > 1 else 0)


def misfit(cuda: str, hardware: HardwareSnapshot) -> tuple[str, str] | None:
    """What keeps a torch for `cuda` (empty: for none) from computing on these GPUs, and the line
    that cures it; None: nothing."""
    best = build_for(hardware)
    if not cuda:
        cure = torch_line(best) if best else driver_line()
        return "is built without CUDA", cure
    needed = OLDEST_DRIVER.get(_pair(cuda)[0], NEWEST_DRIVER)
    if branch_of(hardware.driver) < needed:
        cure = driver_line()
        if best is not None:
            cure = f"{torch_line(best)}\n{cure}     instead, for a newer driver"
        return f"needs driver {needed}", cure
    least, most = kernels_of(cuda)
    for gpu in hardware.gpus:
        if least <= gpu.sm <= most:
            continue
        age = "older" if gpu.sm < least else "newer"
        cure = torch_line(best) if best else driver_line()
        return (
            f"has no kernels for GPU {gpu.index}, {gpu.name}: {gpu.sm / 10} is {age} than "
            f"{(least if age == 'older' else most) / 10}",
            cure,
        )
    return None


def kernel_packages(cuda: str, versions: Mapping[str, str]) -> tuple[str, str] | None:
    """What is wrong between flashinfer-python and the packages of its compiled kernels, and the
    line that cures it; None: nothing. versions: installed ones by name."""
    own = versions.get("flashinfer-python", "")
    for package in ("flashinfer-cubin", "flashinfer-jit-cache"):
        number, _, made_for = versions.get(package, "").partition("+")
        if not own or not number:
            continue
        index = f"cu{''.join(map(str, _pair(cuda)))}" if cuda else ""
        tail = f" --index-url {_FLASHINFER}/{index}" if package.endswith("cache") and index else ""
        line = f"{install()} --force-reinstall --no-deps {package}=={own}{tail}"
        if number != own:
            return f"{package} {number} beside flashinfer-python {own}, which refuses it", line
        if made_for and index and made_for != index:
            return f"{package} is made for {made_for}, torch for {index}", line
    return None


def gpu_without_driver() -> str:
    """The PCI address of an NVIDIA display or compute device, empty when there is none."""
    for folder in sorted((ROOT / "sys/bus/pci/devices").glob("*")):
        try:
            vendor = (folder / "vendor").read_text().strip()
            kind = (folder / "class").read_text().strip()
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith(("0x0300", "0x0302")):
            return folder.name
    return ""


def broken_driver(problem: str) -> str:
    """What cures a driver that is there and does not answer."""
    if "mismatch" in problem.lower():
        return "sudo reboot     the driver was updated, and the old module is still loaded"
    if "not installed" in problem:
        return f"{install()} nvidia-ml-py"
    if _in_container():
        return "docker run --gpus all …, with nvidia-container-toolkit on the host"
    return "sudo dmesg | grep -i nvrm     says why; then reload or reinstall the driver"
