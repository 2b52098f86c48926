"""Mesh: this rank's place among the ranks of one engine; frozen, passed by hand."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import UsageError


@dataclass(frozen=True, slots=True)
class Mesh:
    rank: int = 0
    tp: int = 1

    def share(self, size: int, what: str) -> int:
        """This rank's part of `size` equal things; UsageError when tp does not divide it."""
        if size % self.tp:
            raise UsageError(f"tp {self.tp} does not divide {what} ({size})")
        return size // self.tp

    def kv_share(self, kv_heads: int) -> tuple[int, int]:
        """(first, count) of the kv heads this rank holds; heads are repeated when tp is larger."""
        if kv_heads >= self.tp:
            count = self.share(kv_heads, "key-value heads")
            return self.rank * count, count
        if self.tp % kv_heads:
            raise UsageError(f"tp {self.tp} is no multiple of {kv_heads} key-value heads")
        return self.rank * kv_heads // self.tp, 1
