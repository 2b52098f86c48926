"""Every pair of ranks exchanges some bytes before a model is loaded, so that a hang has a name.

In: a way to trade with one other rank, and a board on which ranks leave words for each other.
Out: what each pair took. Ranks trade in rounds, each with one other at a time, and go on to the
next round together: what hangs in one would otherwise be blamed on those who wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from appliance.errors import HardwareError

Pair = tuple[int, int]
"""Two ranks, the lower one first."""

_PATIENCE_S = 5.0
"""Beyond the limit of a trade, for words that others leave about theirs."""
_SLOW_SHARE = 4
"""A pair that takes so many times the median of all is slow."""


class Board(Protocol):
    def put(self, key: str, words: str) -> None: ...

    def read(self, key: str, limit_s: float) -> str | None:
        """None when nobody has put it there by then."""


class Trade(NamedTuple):
    """seconds: None when it did not end. why: what was wrong with it, where that is known."""

    seconds: float | None
    why: str = ""


class Found(NamedTuple):
    """Of the pairs that were tried. failed: pair to reason; the others that were to follow were
    not tried then."""

    seconds: dict[Pair, float]
    failed: dict[Pair, str]

    def slow(self, moved: int, least: float) -> list[Pair]:
        """Pairs that moved less than `least` bytes a second, or far less than the others did."""
        usual = sorted(self.seconds.values())[len(self.seconds) // 2] if self.seconds else 0.0
        return [
            pair
            for pair, taken in sorted(self.seconds.items())
            if moved / max(taken, 1e-9) < least or taken > _SLOW_SHARE * usual
        ]


def rounds(count: int) -> list[list[Pair]]:
    """Every pair once; in a round no rank twice."""
    seats: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    found = []
    for _ in range(len(seats) - 1):
        opposite = zip(seats, reversed(seats), strict=True)
        pairs = [(a, b) for a, b in list(opposite)[: len(seats) // 2]]
        found.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return found


def try_pairs(
    rank: int, count: int, trade: Callable[[int], Trade], board: Board, limit_s: float
) -> Found:
    """Called by every rank; all get the same answer. trade: exchanges with one rank; what it takes
    longer than `limit_s` for is left behind in its thread."""
    seconds: dict[Pair, float] = {}
    failed: dict[Pair, str] = {}
    for number, pairs in enumerate(rounds(count)):
        mine = next((a + b - rank for a, b in pairs if rank in (a, b)), None)
        if mine is not None:
            done = within(limit_s, trade, mine)
            words = f"{done.seconds}" if done.seconds is not None else f"!{done.why}"
            board.put(f"{number}/{rank}", words)
        for pair in pairs:
            said = [board.read(f"{number}/{r}", limit_s + _PATIENCE_S) for r in pair]
            wrong = [w for w in said if w is None or w.startswith("!")]
            if wrong:
                failed[pair] = next((w[1:] for w in wrong if w and w[1:]), "")
            else:
                seconds[pair] = max(float(w or 0) for w in said)
        if failed:
            break
    return Found(seconds, failed)


def within(limit_s: float, trade: Callable[[int], Trade], peer: int) -> Trade:
    """One trade in a thread of its own: nothing else comes back from a device that hangs."""
    answers: list[Trade] = []

    def run() -> None:
        try:
            answers.append(trade(peer))
        except (RuntimeError, OSError) as e:
            answers.append(Trade(None, str(e).partition("\n")[0]))

    thread = threading.Thread(target=run, name="links", daemon=True)
    thread.start()
    thread.join(limit_s)
    return answers[0] if answers else Trade(None)


def broken(
    failed: Mapping[Pair, str], names: Sequence[str], limit_s: float, environment: Mapping[str, str]
) -> HardwareError:
    """What to tell of pairs that do not reach one another. names: of the ranks' devices."""
    pairs = "; ".join(
        f"{names[a]} and {names[b]}" + (f" ({why})" if why else "")
        for (a, b), why in sorted(failed.items())
    )
    hint = (
        "NCCL_P2P_DISABLE=1 appliance up …     they exchange through the host's memory, slower\n"
        "For the full speed: `nvidia-smi topo -p2p r` shows the pairs; direct copies are turned "
        "away by an\nIOMMU (kernel option iommu=pt), by ACS on PCIe switches, or by a virtual "
        "machine without peers.\n"
    )
    if environment.get("NCCL_P2P_DISABLE", "0") != "0":
        hint = (
            "NCCL_P2P_DISABLE=1 is set, so they exchange through /dev/shm: `appliance doctor` "
            "looks at its size\n(docker run --shm-size=8g). NCCL_DEBUG=INFO appliance up … logs "
            "which way each pair takes.\n"
        )
    return HardwareError(
        f"{pairs} do not reach one another: what they exchange before the model is loaded was not "
        f"there, or not right, within {limit_s:.0f} s.",
        hint + "--tp 1 with replicas needs no exchange; --set engine.try_links=false skips this.",
        code="APL-HW-006",
    )
