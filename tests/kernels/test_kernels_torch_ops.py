"""Ops in plain torch where they take another road than the obvious one."""

from __future__ import annotations

import pytest
import torch

from appliance.kernels.torch_ops import descending


@pytest.mark.parametrize("vocab", [1, 7, 300, 5000])
def test_descending_is_a_sort(vocab: int) -> None:
    x = torch.randn(5, vocab, generator=torch.Generator().manual_seed(vocab))
    x[1, : vocab // 2] = -torch.inf
    x[2] = x[2].round()
    assert torch.equal(descending(x), x.sort(-1, descending=True).values)


def test_descending_puts_what_is_no_number_first() -> None:
    x = torch.tensor([[1.0, torch.nan, 3.0, -torch.inf, torch.inf]])
    found = descending(x)
    assert bool(found[0, 0].isnan())
    assert found[0, 1:].tolist() == [torch.inf, 3.0, 1.0, -torch.inf]


def test_descending_takes_views() -> None:
    x = torch.randn(40, 3).T
    assert torch.equal(descending(x), x.sort(-1, descending=True).values)
