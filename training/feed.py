"""Batches of packed rows from text workers that run beside the training.

The workers are processes of `training.text` that write shard files; when they fall behind,
shards already read are read again, so that a batch never has to wait.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_KEPT = 160
"""Shards kept in memory to be read again."""
Rows = npt.NDArray[np.int16]


class Feed:
    """Rows of one length, `rows` at a time, as int16 tensors [rows, 3, length]."""

    def __init__(self, folder: Path, length: int, rows: int, seed: int, pinned: bool) -> None:
        self._folder = folder
        self._length = length
        self._rows = rows
        self._pinned = pinned
        self._chance = np.random.default_rng(seed + length)
        self._kept: deque[Rows] = deque(maxlen=_KEPT)
        self._left: Rows = np.zeros((0, 3, length), np.int16)
        self.fresh_shards = 0
        self.repeated_shards = 0

    def ready(self) -> bool:
        return bool(self._kept) or any(self._folder.glob(f"{self._length}-*.npy"))

    def next(self) -> Tensor:
        while len(self._left) < self._rows:
            shard = self._shard()
            order = self._chance.permutation(len(shard))
            self._left = np.concatenate((self._left, shard[order]))
        batch = torch.from_numpy(self._left[: self._rows])
        self._left = self._left[self._rows :]
        return batch.pin_memory() if self._pinned else batch

    def _shard(self) -> Rows:
        while True:
            waiting = sorted(
                self._folder.glob(f"{self._length}-*.npy"), key=lambda path: path.name[-10:]
            )
            if waiting:
                shard: Rows = np.load(waiting[0])
                waiting[0].unlink()
                self._kept.append(shard)
                self.fresh_shards += 1
                return shard
            if self._kept:
                self.repeated_shards += 1
                return self._kept[int(self._chance.integers(len(self._kept)))]
            time.sleep(0.05)


class Workers:
    """The text processes; they end with this object, or with this process."""

    def __init__(
        self, folder: Path, tokenizer: Path, *, seed: int, lengths: dict[int, tuple[int, int]]
    ) -> None:
        """lengths: row length -> (workers, rows a shard)."""
        self._children: list[subprocess.Popen[bytes]] = []
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
        root = str(Path(__file__).parent.parent)
        number = 0
        for length, (count, rows) in lengths.items():
            for _ in range(count):
                arguments = {
                    "tokenizer": tokenizer,
                    "out": folder,
                    "seed": seed,
                    "worker": number,
                    "length": length,
                    "rows": rows,
                }
                flags = [part for key, value in arguments.items() for part in (f"--{key}", value)]
                command = [sys.executable, "-m", "training.text", *map(str, flags)]
                self._children.append(subprocess.Popen(command, cwd=root, env=environment))
                number += 1

    def failed(self) -> list[int]:
        """Exit statuses of the workers that ended."""
        return [child.returncode for child in self._children if child.poll() is not None]

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.wait()
