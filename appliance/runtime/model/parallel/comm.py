"""Collectives between the ranks of one engine: the only door to torch.distributed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from appliance.runtime.model.parallel.mesh import Mesh


class Comm(Protocol):
    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks; may overwrite x."""

    def all_gather(self, x_BV: Tensor) -> Tensor:
        """Every rank's columns side by side: [B, V] -> [B, V * tp]."""

    def broadcast(self, x: Tensor) -> None:
        """Rank 0's values to all, in place."""

    def smallest(self, value: int) -> int:
        """The least of the ranks' numbers (host; start-up only)."""

    def close(self) -> None: ...


class Solo:
    """One rank: nothing to say to anybody."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x_BV: Tensor) -> Tensor:
        return x_BV

    def broadcast(self, x: Tensor) -> None:
        return None

    def smallest(self, value: int) -> int:
        return value

    def close(self) -> None:
        return None


class Group:
    """NCCL on GPUs, gloo on CPUs; the ranks meet through a file that only this user can read."""

    def __init__(self, mesh: Mesh, device: torch.device, meeting: Path) -> None:
        self._tp = mesh.tp
        self._device = device
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.FileStore(str(meeting), mesh.tp),  # type: ignore[attr-defined]
            rank=mesh.rank,
            world_size=mesh.tp,
            timeout=timedelta(seconds=120),
            device_id=device if device.type == "cuda" else None,
        )

    def all_reduce(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    def all_gather(self, x_BV: Tensor) -> Tensor:
        rows, columns = x_BV.shape
        parts = torch.empty((self._tp * rows, columns), dtype=x_BV.dtype, device=x_BV.device)
        dist.all_gather_into_tensor(parts, x_BV.contiguous())
        return parts.view(self._tp, rows, columns).transpose(0, 1).reshape(rows, -1)

    def broadcast(self, x: Tensor) -> None:
        dist.broadcast(x, 0)

    def smallest(self, value: int) -> int:
        x = torch.tensor([value], dtype=torch.int64, device=self._device)
        dist.all_reduce(x, op=dist.ReduceOp.MIN)
        return int(x.item())

    def close(self) -> None:
        if self._device.type == "cuda":
            # NCCL's orderly end waits for the other ranks to do the same, and they may be gone
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()


def connect(mesh: Mesh, device: torch.device, meeting: Path | None) -> Comm:
    """meeting: file the ranks rendezvous at; needed when tp > 1."""
    if mesh.tp == 1:
        return Solo()
    assert meeting is not None, "ranks need a meeting place"
    return Group(mesh, device, meeting)
