"""Pairs of ranks are tried before a model is loaded, and those that hang are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from itertools import combinations
from pathlib import Path

import pytest
import torch

from appliance.runtime.model.parallel import links, pairs
from appliance.runtime.model.parallel.comm import Group, Solo
from appliance.runtime.model.parallel.links import Found, Trade, rounds, try_pairs

SCRIPT = Path(__file__).with_name("link_rank.py")


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_every_pair_once_and_no_rank_twice_in_a_round(count: int) -> None:
    found = rounds(count)
    assert sorted(p for one_round in found for p in one_round) == list(
        combinations(range(count), 2)
    )
    for one_round in found:
        ranks = [r for pair in one_round for r in pair]
        assert len(ranks) == len(set(ranks))


class Words:
    """A board in this process."""

    def __init__(self) -> None:
        self._words: dict[str, str] = {}
        self._news = threading.Condition()

    def put(self, key: str, words: str) -> None:
        with self._news:
            self._words[key] = words
            self._news.notify_all()

    def read(self, key: str, limit_s: float) -> str | None:
        with self._news:
            self._news.wait_for(lambda: key in self._words, limit_s)
            return self._words.get(key)


def all_ranks(count: int, bad: dict[tuple[int, int], Trade | None], limit_s: float) -> list[Found]:
    """What each rank finds where some pairs (rank, peer) fail, or never end (None)."""
    board, found = Words(), {}
    released = threading.Event()

    def trade_of(rank: int, peer: int) -> Trade:
        if (rank, peer) not in bad:
            return Trade(0.25 if {rank, peer} == {0, 2} else 0.125)
        told = bad[rank, peer]
        if told is None:
            released.wait()
            raise OSError("too late")
        return told

    def run(rank: int) -> None:
        found[rank] = try_pairs(rank, count, lambda peer: trade_of(rank, peer), board, limit_s)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    released.set()
    return [found[rank] for rank in range(count)]


def test_all_ranks_are_told_the_same() -> None:
    found = all_ranks(8, {}, 30.0)
    assert all(f == found[0] for f in found)
    assert not found[0].failed and len(found[0].seconds) == 28
    assert found[0].seconds[0, 2] == 0.25 and found[0].seconds[0, 1] == 0.125


def test_a_pair_that_hangs_is_named_and_those_that_wait_for_it_are_not() -> None:
    bad = {(1, 3): None, (3, 1): None}
    found = all_ranks(4, bad, 0.3)
    assert [set(f.failed) for f in found] == [{(1, 3)}] * 4
    told = all_ranks(3, {(2, 0): Trade(None, "unhandled system error")}, 30.0)
    assert [f.failed for f in told] == [{(0, 2): "unhandled system error"}] * 3


def test_a_rank_that_leaves_no_word_is_not_waited_for_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "_PATIENCE_S", 0.1)
    found = try_pairs(0, 2, lambda peer: Trade(0.1), Words(), 0.1)
    assert set(found.failed) == {(0, 1)}


def test_slow_is_slower_than_the_others_or_than_the_least() -> None:
    found = Found({(0, 1): 0.001, (0, 2): 0.001, (1, 2): 0.005}, {})
    assert found.slow(8 << 20, 1e9) == [(1, 2)]
    assert found.slow(8 << 20, 1e12) == [(0, 1), (0, 2), (1, 2)]
    assert Found({(0, 1): 0.001}, {}).slow(8 << 20, 1e9) == []
    assert Found({}, {}).slow(8 << 20, 1e9) == []


def test_the_error_names_the_pairs_and_what_to_try_next() -> None:
    names = ["GPU 2", "GPU 3", "GPU 5"]
    error = links.broken({(0, 2): "", (0, 1): "timed out"}, names, 10.0, {})
    assert "GPU 2 and GPU 3 (timed out); GPU 2 and GPU 5 do not reach" in error.message
    assert (error.exit_code, error.code) == (8, "APL-HW-006")
    assert error.hint.startswith("NCCL_P2P_DISABLE=1 appliance up") and "IOMMU" in error.hint
    told = links.broken({(0, 2): ""}, names, 10.0, {"NCCL_P2P_DISABLE": "1"}).hint
    assert "--shm-size" in told and "IOMMU" not in told
    assert Solo().try_links() == {}


def test_gpus_are_called_as_people_number_them(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group.__new__(Group)
    group._tp, group._rank = 2, 1
    group._device = torch.device("cuda", 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert group._names() == ["GPU 2", "GPU 3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5, 6,7")
    assert group._names() == ["GPU 6", "GPU 7"]


def over_gloo(folder: Path, ranks: int, fault: str, a: int, b: int) -> list[dict[str, object]]:
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(folder / f"meeting-{fault}"), str(ranks), str(rank),
             fault, str(a), str(b)],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        return [json.loads(p.communicate(timeout=120)[0]) for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_ranks_over_gloo_tell_what_their_links_took(tmp_path: Path) -> None:
    found = over_gloo(tmp_path, 2, "none", 0, 0)
    assert all(f["links_slowest"] == found[0]["links_slowest"] for f in found)
    assert "GB/s" in str(found[0]["links_slowest"]) and "links_slow" not in found[0]


@pytest.mark.parametrize(
    ("fault", "says"), [("hang", "rank 1 and rank 2"), ("wrong", "rank 0 and rank 1")]
)
def test_over_gloo_a_fault_is_named_by_every_rank(tmp_path: Path, fault: str, says: str) -> None:
    ranks, a, b = (3, 1, 2) if fault == "hang" else (2, 0, 1)
    found = over_gloo(tmp_path, ranks, fault, a, b)
    for told in found:
        assert told["code"] == "APL-HW-006"
        assert str(told["message"]).startswith(says)
    if fault == "wrong":
        assert "other bytes arrived" in str(found[0]["message"])


def tried(count: int, fault: str, pair: str) -> list[dict[str, object]]:
    side = [sys.executable, str(Path(__file__).with_name("pair_side.py")), fault, pair]
    return list(pairs.try_all("cpu", count, side)["pairs"])


@pytest.mark.slow
def test_a_pair_whose_direct_way_hangs_is_tried_through_the_host() -> None:
    """Each pair has processes of its own, so the others are tried all the same."""
    found = {f"{p['a']}-{p['b']}": p for p in tried(3, "hang", "0-2")}
    assert found.keys() == {"0-1", "0-2", "1-2"}
    assert found["0-2"]["seconds"] is None and found["0-2"]["host_seconds"]
    assert "within 2 s" in str(found["0-2"]["why"])
    assert found["0-1"]["seconds"] and found["1-2"]["seconds"]


@pytest.mark.slow
def test_a_pair_that_does_not_come_up_tells_its_last_word() -> None:
    (found,) = tried(2, "end", "0-1")
    assert found["seconds"] is None and found["host_seconds"] is None
    assert found["why"] == "no device answers"
