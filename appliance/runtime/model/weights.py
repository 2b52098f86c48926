"""Safetensors -> the model: read by several threads straight from mapped files, every tensor
placed, every parameter filled, or one error that names both."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from appliance.errors import DamagedError
from appliance.runtime.model.build import Build
from appliance.runtime.model.files import files_of
from appliance.runtime.model.quant.scheme import Finishing, Scheme

THREADS = 8


class _Slice:
    """A checkpoint tensor that is read part by part, straight from the mapped file."""

    def __init__(self, handle: Any, name: str) -> None:
        self._handle, self._name = handle, name
        self._slice = handle.get_slice(name)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._slice.get_shape())

    def read(self, rows: slice, columns: slice | None) -> Tensor:
        part: Tensor = self._slice[rows] if columns is None else self._slice[rows, columns]
        return part

    def whole(self) -> Tensor:
        tensor: Tensor = self._handle.get_tensor(self._name)
        return tensor


@dataclass(frozen=True)
class _Part:
    """Tensors of a file that one thread places."""

    path: Path
    names: list[str]


def _parts(files: list[Path]) -> list[_Part]:
    """As many for each file that every thread has work, however few files there are."""
    each = -(-THREADS // len(files))
    parts = []
    for path in files:
        with safe_open(path, framework="pt", device="cpu") as handle:
            names = list(handle.keys())
        size = max(1, -(-len(names) // each))
        parts += [_Part(path, names[at : at + size]) for at in range(0, len(names), size)]
    return parts


def load(model: nn.Module, build: Build, folder: Path, progress: Callable[[float], None]) -> None:
    """Fills `model` from `folder`. progress is told the share that is read, from 0 to 1.

    IntegrityError names what does not fit: tensors nobody wants, parameters nobody filled, and
    tensors of another shape.
    """
    files = files_of(folder)
    unknown: list[str] = []
    wrong: list[str] = []
    left = dict(build.places)
    done = 0

    def read(part: _Part) -> None:
        with torch.inference_mode(), safe_open(part.path, framework="pt", device="cpu") as handle:
            for name in part.names:
                # checkpoints of a bare decoder leave out the word that names it
                place = left.pop(name, None) or left.pop(f"model.{name}", None)
                place = place or build.offered.get(name) or build.offered.get(f"model.{name}")
                if place is None:
                    if name not in build.optional:
                        unknown.append(name)
                    continue
                try:
                    place(_Slice(handle, name))
                except (RuntimeError, IndexError, SafetensorError) as e:
                    wrong.append(f"{name} ({_Slice(handle, name).shape}: {e})")

    try:
        parts = _parts(files)
        with ThreadPoolExecutor(max_workers=THREADS) as pool:
            for _ in pool.map(read, parts):
                done += 1
                progress(done / len(parts))
    except SafetensorError as e:
        raise DamagedError(f"a weight file of {folder} is damaged: {e}") from e
    if unknown or left or wrong:
        raise DamagedError(_account(folder, unknown, sorted(left), wrong))
    finish(model)


def _account(folder: Path, unknown: list[str], unfilled: list[str], wrong: list[str]) -> str:
    def some(names: list[str]) -> str:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return ", ".join(names[:5]) + more

    parts = []
    if unknown:
        parts.append(f"{len(unknown)} tensors have no place in the model: {some(sorted(unknown))}")
    if unfilled:
        parts.append(f"{len(unfilled)} parameters were not filled: {some(unfilled)}")
    if wrong:
        parts.append(f"{len(wrong)} tensors do not fit: {some(sorted(wrong))}")
    return f"the weights in {folder} do not match the config: " + "; ".join(parts) + "."


def fill(model: nn.Module, seed: int) -> None:
    """Random weights (normal, deviation 0.02; norms stay one): for measurements only."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, Scheme):
                part.fill(0.02)
        for name, parameter in model.named_parameters():
            if name.split(".")[0] in ("embedding", "head"):
                parameter.normal_(0.0, 0.02)
    finish(model)


def finish(model: nn.Module) -> None:
    for part in model.modules():
        if isinstance(part, Finishing):
            part.finish()
