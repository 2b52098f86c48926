"""Collectives between the ranks of one engine: the only door to torch.distributed."""

from __future__ import annotations

import logging
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from appliance.runtime.model.parallel.links import Found, Trade, broken, try_pairs
from appliance.runtime.model.parallel.mesh import Mesh

log = logging.getLogger(__name__)

TRADE_LIMIT_S = 10.0
"""Seconds for one pair's exchange, connecting included."""
TRADE_BYTES = {"cuda": 8 << 20, "cpu": 64 << 10}
LEAST_RATE = {"cuda": 2e9, "cpu": 0.0}
"""Bytes a second below which a pair of GPUs is slow: what neither NVLink nor PCIe nor the host's
memory is held to."""


class Comm(Protocol):
    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks; may overwrite x."""

    def all_gather(self, x_BV: Tensor) -> Tensor:
        """Every rank's columns side by side: [B, V] -> [B, V * tp]."""

    def broadcast(self, x: Tensor) -> None:
        """Rank 0's values to all, in place."""

    def smallest(self, value: int) -> int:
        """The least of the ranks' numbers (host; start-up only)."""

    def try_links(self) -> dict[str, Any]:
        """Every pair of ranks exchanges some bytes, timed (start-up only). HardwareError names
        those that do not reach one another. What is told of the others: links_s, links_slowest,
        and links_slow where some are."""

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

    def try_links(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        return None


class Group:
    """NCCL on GPUs, gloo on CPUs; the ranks meet through a file that only this user can read."""

    def __init__(self, mesh: Mesh, device: torch.device, meeting: Path) -> None:
        self._tp, self._rank = mesh.tp, mesh.rank
        self._device = device
        self._store = dist.FileStore(str(meeting), mesh.tp)  # type: ignore[attr-defined]
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=self._store,
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

    def try_links(self) -> dict[str, Any]:
        kind, begin = self._device.type, time.perf_counter()
        names = self._names()
        found = self.try_pairs()
        if found.failed:
            raise broken(found.failed, names, TRADE_LIMIT_S, os.environ)
        moved = TRADE_BYTES[kind]

        def words(a: int, b: int) -> str:
            return f"{names[a]} and {names[b]}: {moved / found.seconds[a, b] / 1e9:.1f} GB/s"

        slowest = max(found.seconds, key=lambda pair: found.seconds[pair])
        facts: dict[str, Any] = {
            "links_s": round(time.perf_counter() - begin, 3),
            "links_slowest": words(*slowest),
        }
        slow = found.slow(moved, LEAST_RATE[kind]) if kind == "cuda" else []
        if slow:
            facts["links_slow"] = [words(a, b) for a, b in slow]
            log.warning("slow between %s", ", ".join(facts["links_slow"]))
        return facts

    def try_pairs(self) -> Found:
        """What each pair's exchange took (start-up only). In a group of its own, because what NCCL
        keeps for each pair is memory of the device."""
        cuda = self._device.type == "cuda"
        group = dist.new_group() if cuda else None
        found = try_pairs(
            self._rank,
            self._tp,
            lambda peer: self._trade(peer, group),
            _StoreBoard(self._store),
            TRADE_LIMIT_S,
        )
        if cuda and not found.failed:
            dist.destroy_process_group(group)
        return found

    def _trade(self, peer: int, group: Any) -> Trade:
        """The second of two exchanges: the first connects. Runs in a thread of its own."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        size = TRADE_BYTES[self._device.type]
        mine = torch.full((size,), self._rank + 1, dtype=torch.uint8, device=self._device)
        theirs = torch.zeros_like(mine)
        seconds = 0.0
        for _ in range(2):
            begin = time.perf_counter()
            ops = [
                dist.P2POp(dist.isend, mine, peer, group),
                dist.P2POp(dist.irecv, theirs, peer, group),
            ]
            for work in dist.batch_isend_irecv(ops):
                work.wait()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            seconds = time.perf_counter() - begin
        if not bool((theirs == peer + 1).all()):
            return Trade(None, "other bytes arrived than were sent")
        return Trade(seconds)

    def _names(self) -> list[str]:
        """Of the ranks' devices, as people number them."""
        if self._device.type != "cuda":
            return [f"rank {r}" for r in range(self._tp)]
        shown = [n.strip() for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n]
        first = (self._device.index or 0) - self._rank
        numbers = range(first, first + self._tp)
        return [f"GPU {shown[n] if n < len(shown) else n}" for n in numbers]

    def close(self) -> None:
        if self._device.type == "cuda":
            # NCCL's orderly end waits for the other ranks to do the same, and they may be gone
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()


class _StoreBoard:
    """Words of the ranks in the file through which they met."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def put(self, key: str, words: str) -> None:
        self._store.set(f"links/{key}", words)

    def read(self, key: str, limit_s: float) -> str | None:
        try:
            self._store.wait([f"links/{key}"], timedelta(seconds=limit_s))
        except RuntimeError:  # time is up
            return None
        return str(self._store.get(f"links/{key}").decode())


def connect(mesh: Mesh, device: torch.device, meeting: Path | None) -> Comm:
    """meeting: file the ranks rendezvous at; needed when tp > 1."""
    if mesh.tp == 1:
        return Solo()
    assert meeting is not None, "ranks need a meeting place"
    return Group(mesh, device, meeting)
