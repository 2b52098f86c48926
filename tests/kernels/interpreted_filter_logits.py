"""The search for thresholds against the sorted filter, in Triton's interpreter; run by
test_kernels_interpreted.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from appliance.kernels.filter_logits import Launch, keep_likely
from appliance.kernels.torch_ops import TorchOps

VOCAB = 803
SMALL = Launch(chunks=4, bins=32, part=256, block=128, drop_block=256, few=128, find_block=64)
"""Blocks and copies as small beside the vocabulary as real ones are beside theirs."""
ASKED = [(0, 0.9, 0.0), (0, 0.3, 0.0), (0, 1e-6, 0.0), (0, 0.999999, 0.0), (1, 1.0, 0.0),
         (40, 1.0, 0.0), (700, 1.0, 0.0), (VOCAB, 1.0, 0.0), (0, 1.0, 0.05), (0, 1.0, 1.0),
         (50, 0.95, 0.02), (800, 0.5, 0.001), (3, 0.01, 0.9)]  # fmt: skip


def rows(kind: str) -> torch.Tensor:
    torch.manual_seed(len(kind))
    x = torch.randn(len(ASKED), VOCAB) * 3
    if kind == "peaked":
        x[:, 7] += 40
    elif kind == "ties":
        x = (x * 2).round() / 2
    elif kind == "equal":
        x[:] = -1.25
    elif kind == "masked":
        x[:, 20:] = -torch.inf
    elif kind == "one left":
        x[:] = -torch.inf
        x[:, VOCAB - 1] = 3.0
    elif kind == "wide":
        x *= 1e4
    elif kind == "ascending":
        x = x.sort(-1).values
    elif kind == "one far below":
        x[:, 1] = -3e38
    elif kind == "far from zero":
        x = x * 0.01 + 1000
    elif kind == "zeros":
        x = torch.where(x > 0, 0.0, -0.0)
    return x


def kept(filtered: torch.Tensor) -> torch.Tensor:
    return filtered > -torch.inf


KINDS = ["normal", "peaked", "ties", "equal", "masked", "one left", "wide", "ascending",
         "one far below", "far from zero", "zeros"]  # fmt: skip


@pytest.mark.parametrize(
    "kind,few", [(kind, 128) for kind in KINDS] + [("normal", 1), ("ties", 1), ("ascending", 1)]
)
def test_keeps_what_sorting_keeps(kind, few):
    """few 1: rows are searched as a whole."""
    x = rows(kind)
    top_k, top_p, min_p = (list(c) for c in zip(*ASKED, strict=True))
    k = torch.tensor([n or VOCAB for n in top_k], dtype=torch.int32)
    p, m = torch.tensor(top_p), torch.tensor(min_p)
    at = torch.arange(len(ASKED), dtype=torch.int32)
    got = keep_likely(x.clone(), at, k, p, m, replace(SMALL, few=few))
    want = TorchOps().keep_likely(x.clone(), at, k, p, m)
    mass = x.double().softmax(-1)
    for row in range(len(ASKED)):
        differs = kept(got[row]) != kept(want[row])
        # sums in another order: what stands on the border by 1e-5 of the mass may fall either way
        assert float(mass[row][differs].sum()) < 2e-5, (ASKED[row], int(differs.sum()))
        if kind in ("ties", "equal", "masked", "one left", "zeros") and top_p[row] in (1.0, 0.3):
            assert not differs.any(), ASKED[row]
        assert torch.equal(got[row][kept(got[row])], x[row][kept(got[row])])
        assert kept(got[row])[x[row].argmax()]


def test_a_row_does_not_depend_on_its_batch_and_the_others_stay():
    x = rows("normal")
    for row, (k, p, m) in list(enumerate(ASKED))[::3]:
        asked = torch.tensor([k or VOCAB], dtype=torch.int32), torch.tensor([p]), torch.tensor([m])
        alone = keep_likely(
            x[row : row + 1].clone(), torch.zeros(1, dtype=torch.int32), *asked, SMALL
        )
        among = keep_likely(x.clone(), torch.tensor([row], dtype=torch.int32), *asked, SMALL)
        assert torch.equal(alone[0], among[row])
        others = torch.arange(len(ASKED)) != row
        assert torch.equal(among[others], x[others])


@pytest.mark.filterwarnings("ignore:invalid value")
def test_rows_that_ask_nothing_and_rows_that_are_not_finite_stay():
    x = rows("normal")[:4]
    x[1, 5] = torch.inf
    x[2] = -torch.inf
    before = x.clone()
    at = torch.arange(4, dtype=torch.int32)
    k = torch.tensor([VOCAB, 40, 40, 40], dtype=torch.int32)
    p, m = torch.tensor([1.0, 0.9, 0.9, 1.0]), torch.zeros(4)
    got = keep_likely(x, at, k, p, m, SMALL)
    assert torch.equal(got[:3], before[:3])
    assert int(kept(got[3]).sum()) == 40


def test_the_same_seed_draws_the_same_token():
    x = rows("normal")
    at = torch.arange(len(ASKED), dtype=torch.int32)
    k = torch.full((len(ASKED),), 60, dtype=torch.int32)
    p, m = torch.full((len(ASKED),), 0.9), torch.full((len(ASKED),), 0.01)
    plain = TorchOps()
    seeds, ones = torch.randint(0, 1 << 62, (len(ASKED),)), torch.ones(len(ASKED))
    found = []
    for filtered in (
        keep_likely(x.clone(), at, k, p, m),
        plain.keep_likely(x.clone(), at, k, p, m),
    ):
        draws = [
            plain.gumbel_argmax(filtered, ones, seeds, torch.full_like(at, i)).tolist()
            for i in range(20)
        ]
        found.append(draws)
    assert found[0] == found[1]
