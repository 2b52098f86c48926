"""Conditions of a machine that doctor looks at beyond what the appliance itself can tell."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from msgspec import Struct

from appliance.cli import toolkit
from appliance.cli.output import gigabytes
from appliance.hardware import HardwareSnapshot, Peers
from appliance.hub.layout import hf_cache

SHM = Path("/dev/shm")
LEAST_SHM = 1 << 30
SAMPLE_BYTES = 32 << 20
SLOW_DISK = 100e6
"""Bytes a second below which a large model takes minutes to load."""
_BUILT = ("flashinfer-jit-cache", "flashinfer-cubin")
"""Packages of kernels that need no compiler."""


class Check(Struct, frozen=True):
    """name: what was looked at. fix: a command or an action; empty when all is well."""

    name: str
    verdict: Literal["ok", "warn", "block"]
    found: str
    fix: str = ""


def compilers(hardware: HardwareSnapshot, path: str | None = None) -> Check:
    """nvcc, ninja and a C++ compiler: kernels that do not come compiled are compiled once."""
    if not hardware.gpus:
        return Check("compilers", "ok", "not needed without a GPU")
    found = {tool: shutil.which(tool, path=path) for tool in ("nvcc", "ninja", "g++", "gcc")}
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    if not found["nvcc"] and os.access(f"{home}/bin/nvcc", os.X_OK):
        found["nvcc"] = f"{home}/bin/nvcc"
    lacking = [tool for tool in ("nvcc", "ninja", "g++") if not found[tool]]
    text = ", ".join(f"{tool} {where or '–'}" for tool, where in found.items())
    if not found["gcc"]:
        fix = "apt install gcc: Triton compiles its launchers with it"
        return Check("compilers", "block", text, fix)
    built = [package for package in _BUILT if _installed(package)]
    if lacking and not built:
        fix = f"install {', '.join(lacking)}, or compiled kernels: pip install {_BUILT[0]}"
        return Check("compilers", "warn", text, fix)
    return Check("compilers", "ok", text + (f"; {', '.join(built)}" if built else ""))


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def torch_cuda() -> str | None:
    """CUDA version that torch was built for; empty: a CPU build; None: no torch. Not imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return ""
    match_ = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match_[1] if match_ else ""


def torch_fits(hardware: HardwareSnapshot) -> Check:
    """Whether torch is here, and goes with the driver and with each GPU."""
    cuda, built = torch_cuda(), _version("torch")
    if cuda is None:
        best = toolkit.build_for(hardware) if hardware.gpus else None
        line = toolkit.torch_line(best) if best else f"{toolkit.install()} torch"
        return Check("torch", "block", "not installed", line)
    if not hardware.gpus:
        return Check("torch", "ok", f"{built}{f' for CUDA {cuda}' if cuda else ''}")
    text = f"{built} for CUDA {cuda}, driver {hardware.driver}" if cuda else built
    if hardware.cuda and cuda:
        text += f" (CUDA {hardware.cuda})"
    wrong = toolkit.misfit(cuda, hardware)
    if wrong is not None:
        what, line = wrong
        return Check("torch", "block", f"{text}: {what}" if cuda else f"{text} {what}", line)
    return Check("torch", "ok", text)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def flashinfer(hardware: HardwareSnapshot) -> Check:
    """The kernels of a GPU, and whether the packages of them go together."""
    names = ("flashinfer-python", *_BUILT)
    versions = {name: found for name in names if (found := _version(name)) != "?"}
    own = versions.get("flashinfer-python", "")
    if not hardware.gpus:
        return Check("flashinfer", "ok", own or "not needed without a GPU")
    if not own:
        return Check(
            "flashinfer", "block", "not installed", f"{toolkit.install()} 'appliance[gpu]'"
        )
    wrong = toolkit.kernel_packages(torch_cuda() or "", versions)
    if wrong is not None:
        return Check("flashinfer", "block", wrong[0], wrong[1])
    return Check("flashinfer", "ok", own)


def links(hardware: HardwareSnapshot, peers: Peers) -> Check | None:
    """Whether several GPUs reach one another without the host."""
    if len(hardware.gpus) < 2:
        return None
    cut = ", ".join(f"{a}-{b}" for a, b in peers.cut)
    lines = f"{peers.nvlinks} NVLinks" if peers.nvlinks else "no NVLink"
    if peers.cut:
        fix = "they talk through the host, slowly: look at `nvidia-smi topo -p2p r`, IOMMU and ACS"
        return Check("links", "warn", f"{lines}; GPUs without a direct way: {cut}", fix)
    if not peers.nvlinks:
        fix = "several GPUs on one model are held up by PCIe: prefer replicas to --tp"
        return Check("links", "warn", f"{lines}; every pair has a direct way over PCIe", fix)
    return Check("links", "ok", f"{lines}; every pair has a direct way")


def shared_memory(hardware: HardwareSnapshot, folder: Path = SHM) -> Check:
    """NCCL exchanges over /dev/shm what GPUs cannot give one another."""
    if not folder.is_dir():
        fix = f"mount -t tmpfs tmpfs {folder}"
        needed = len(hardware.gpus) > 1
        return Check("shm", "block" if needed else "warn", f"{folder} is not there", fix)
    usage = shutil.disk_usage(folder)
    text = f"{gigabytes(usage.free)} of {gigabytes(usage.total)} free in {folder}"
    if usage.free < LEAST_SHM and len(hardware.gpus) > 1:
        return Check("shm", "block", text, "docker run --shm-size=8g, or --ipc=host")
    if usage.free < LEAST_SHM and hardware.gpus:
        return Check("shm", "warn", text, "several GPUs need 1 GB: docker run --shm-size=8g")
    return Check("shm", "ok", text)


def memory_lock(hardware: HardwareSnapshot, soft: int, unlimited: int) -> Check | None:
    """Pinned memory, through which a step's inputs reach a GPU."""
    if not hardware.gpus or soft == unlimited or soft >= 64 << 20:
        return None
    return Check(
        "memlock", "warn", f"{soft >> 10} KiB may be locked", "ulimit -l unlimited, before `up`"
    )


def throttling(hardware: HardwareSnapshot) -> Check | None:
    slow = [
        f"GPU {g.index} ({', '.join(g.throttle)}"
        + (f", {g.temperature_c} °C" if g.temperature_c is not None else "")
        + ")"
        for g in hardware.gpus
        if g.throttle
    ]
    if not slow:
        return None
    fix = "look at cooling and power: nvidia-smi -q -d PERFORMANCE"
    return Check("clocks", "warn", f"slowed down: {', '.join(slow)}", fix)


def disk_speed(folder: Path | None = None, sample: int = SAMPLE_BYTES) -> Check:
    """Writes a small file where models lie, and waits until the disk has it."""
    where = folder or hf_cache()
    while not where.is_dir() and where != where.parent:
        where = where.parent
    block = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=where, buffering=0) as file:
            begin = time.perf_counter()
            for _ in range(sample >> 20):
                file.write(block)
            os.fsync(file.fileno())
            speed = (sample >> 20 << 20) / max(1e-9, time.perf_counter() - begin)
    except OSError as e:
        fix = "check who owns it, or point HF_HOME at a folder of your own"
        return Check("disk write", "warn", f"{where} cannot be written: {e.strerror}", fix)
    text = f"{speed / 1e6:,.0f} MB/s written to {where}"
    if speed < SLOW_DISK:
        return Check("disk write", "warn", text, "a pull is held up by this disk: HF_HOME=/faster")
    return Check("disk write", "ok", text)


def network(hubs: Iterable[tuple[str, str]], timeout_s: float = 5.0) -> list[Check]:
    """Asks each hub (name, address) for its first page. Any answer will do: it is reached."""
    checks = []
    for name, address in hubs:
        begin = time.perf_counter()
        try:
            request = urllib.request.Request(address, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                status = answer.status
        except urllib.error.HTTPError as e:
            status = e.code
            e.close()
        except (OSError, ValueError) as e:
            reason = e.reason if isinstance(e, urllib.error.URLError) else e
            fix = "check the network and HTTPS_PROXY, or set HF_ENDPOINT to a mirror"
            checks.append(Check("network", "warn", f"{name} at {address}: {reason}", fix))
            continue
        took = (time.perf_counter() - begin) * 1000
        text = f"{name} at {address} answers {status} in {took:.0f} ms"
        verdict: Literal["ok", "warn"] = "ok" if status < 500 else "warn"
        fix = "" if verdict == "ok" else "the hub itself fails: try later"
        checks.append(Check("network", verdict, text, fix))
    return checks


def hubs() -> list[tuple[str, str]]:
    env = os.environ
    scope = env.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn"
    return [
        ("Hugging Face", env.get("HF_ENDPOINT") or "https://huggingface.co"),
        ("ModelScope", scope),
    ]
