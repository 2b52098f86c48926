"""CUDA C++ beside this file -> kernels: compiled for the GPU at hand when first needed, and kept.

What was compiled is kept beside triton's kernels, by source, options and compiler, so that a later
start only loads it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Kernel:
    """A function of a loaded module. RuntimeError when it cannot be loaded or launched."""

    def __init__(self, image: bytes, name: str, shared_bytes: int) -> None:
        """The current device's. shared_bytes: dynamic shared memory of each block."""
        torch.cuda.current_stream().synchronize()  # makes the device's context the current one
        driver = _bindings().driver
        self._module = _checked(driver.cuModuleLoadData(image))  # for as long as it is used
        self._function = _checked(driver.cuModuleGetFunction(self._module, name.encode()))
        self._shared_bytes = shared_bytes
        self._configs: dict[tuple[int, int, bool, bool], Any] = {}
        most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver.cuFuncSetAttribute(self._function, most, shared_bytes))

    def launch(
        self,
        given: ctypes.Structure,
        blocks: int,
        threads: int,
        together: bool = False,
        dependent: bool = False,
    ) -> None:
        """Queued on the current stream. given: the one parameter, by value. together: all blocks
        are on the GPU at once, or it fails. dependent: it may begin before the kernel in front
        ends, whose results it waits for itself."""
        how = blocks, threads, together, dependent
        if how not in self._configs:  # made once: that takes longer than a launch
            self._configs[how] = _config(*how, self._shared_bytes)
        config = self._configs[how]
        config.hStream = torch.cuda.current_stream().cuda_stream
        slots = (ctypes.c_void_p * 1)(ctypes.addressof(given))
        at = ctypes.addressof(slots)
        _checked(_bindings().driver.cuLaunchKernelEx(config, self._function, at, 0))


def tensor_map(tensor: Tensor, box: tuple[int, int]) -> list[int]:
    """How bulk copies of boxes (columns, rows) find a matrix [N, K], contiguous, as the words of a
    kernel's parameter. Lines of 128 bytes are turned as wgmma wants them; what is past an edge
    comes as zeros. For as long as the tensor is where it is."""
    assert tensor.is_contiguous() and tensor.dim() == 2
    driver = _bindings().driver
    (rows, columns), width = tensor.shape, tensor.element_size()
    wide, narrow = driver.cuuint64_t, driver.cuuint32_t
    types = driver.CUtensorMapDataType
    made = _checked(
        driver.cuTensorMapEncodeTiled(
            types.CU_TENSOR_MAP_DATA_TYPE_UINT8 if width == 1
            else types.CU_TENSOR_MAP_DATA_TYPE_UINT16,
            2, tensor.data_ptr(), [wide(columns), wide(rows)], [wide(columns * width)],
            [narrow(size) for size in box], [narrow(1), narrow(1)],
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )  # fmt: skip
    return [int(word) for word in made.opaque]


def architecture(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    return f"sm_{properties.major}{properties.minor}"


def image(source: Path, definitions: Sequence[str], arch: str, folder: Path | None) -> bytes:
    """Machine code of a .cu file, from the folder of an earlier start when it is there.

    folder: where it is kept; triton's when None. RuntimeError: no compiler, or it refused.
    """
    nvrtc = _bindings().nvrtc
    text = source.read_bytes()
    options = [
        f"--gpu-architecture={arch}", "--std=c++17", "--device-as-default-execution-space",
        *definitions,
    ]  # fmt: skip
    version = _checked(nvrtc.nvrtcVersion())
    key = hashlib.sha256(repr((text, options, version)).encode()).hexdigest()[:32]
    kept = (folder or _triton_folder()) / f"{source.stem}-{key}.cubin"
    try:
        return kept.read_bytes()
    except OSError:
        pass  # it is not there, or cannot be read
    found = _compiled(nvrtc, source.name, text, options)
    try:  # whole or not at all, though several ranks write it at once
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        part.write_bytes(found)
        part.replace(kept)
    except OSError:
        pass  # a folder that cannot be written costs seconds at the next start, nothing else
    return found


def _compiled(nvrtc: Any, name: str, text: bytes, options: list[str]) -> bytes:
    program = _checked(nvrtc.nvrtcCreateProgram(text, name.encode(), 0, [], []))
    words = [option.encode() for option in options]
    if int(nvrtc.nvrtcCompileProgram(program, len(words), words)[0]):
        said = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        nvrtc.nvrtcGetProgramLog(program, said)
        raise RuntimeError(f"{name} was not compiled: {said.decode(errors='replace')[:2000]}")
    found = bytes(_checked(nvrtc.nvrtcGetCUBINSize(program)))
    _checked(nvrtc.nvrtcGetCUBIN(program, found))
    nvrtc.nvrtcDestroyProgram(program)
    return found


def _config(blocks: int, threads: int, together: bool, dependent: bool, shared_bytes: int) -> Any:
    driver = _bindings().driver
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = shared_bytes
    kinds, found = driver.CUlaunchAttributeID, []
    if together:
        one = driver.CUlaunchAttribute()
        one.id = kinds.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        one.value.cooperative = 1
        found.append(one)
    if dependent:
        one = driver.CUlaunchAttribute()
        one.id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        one.value.programmaticStreamSerializationAllowed = 1
        found.append(one)
    config.attrs = found
    config.numAttrs = len(found)
    return config


def _checked(answer: tuple[Any, ...]) -> Any:
    """What a call of the bindings gives beside its verdict. RuntimeError when that is bad."""
    if int(answer[0]):
        raise RuntimeError(f"CUDA says {answer[0]!r}")
    return answer[1] if len(answer) == 2 else answer[1:]


def _bindings() -> Any:
    try:
        from cuda import bindings
        from cuda.bindings import driver, nvrtc  # noqa: F401  (become its attributes)
    except ImportError as e:
        raise RuntimeError(f"cuda-bindings cannot be imported: {e}") from e
    return bindings


def _triton_folder() -> Path:
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
