"""Penalties and masks against plain torch in Triton's interpreter; run by
test_kernels_interpreted.py."""

from __future__ import annotations

import pytest
import torch

from appliance.kernels import edit_logits
from appliance.kernels.torch_ops import TorchOps


@pytest.mark.parametrize("rows,vocab", [(1, 1), (3, 2047), (2, 5000), (5, 2048)])
def test_penalties(rows, vocab):
    torch.manual_seed(vocab)
    logits = torch.randn(rows + 2, vocab) * 4
    table = torch.randint(0, 9, (rows + 3, vocab), dtype=torch.int16)
    table[torch.rand(table.shape) < 0.7] = 0
    at, own = torch.randperm(rows + 2)[:rows], torch.randperm(rows + 3)[:rows]
    factors = torch.rand(rows) + 0.5, torch.randn(rows), torch.randn(rows)
    want = logits.clone()
    TorchOps().penalize(want, at, table, own, *factors)
    edit_logits.penalize(logits, at, table, own, *factors)
    torch.testing.assert_close(logits, want, rtol=1e-6, atol=1e-6)
    others = [r for r in range(rows + 2) if r not in at.tolist()]
    assert torch.equal(logits[others], want[others])


@pytest.mark.parametrize("rows,vocab", [(1, 1), (3, 2047), (2, 5000), (4, 64)])
def test_masks(rows, vocab):
    torch.manual_seed(vocab)
    logits = torch.randn(rows + 2, vocab)
    bits = torch.randint(-(2**31), 2**31 - 1, (rows, -(-vocab // 32)), dtype=torch.int32)
    at = torch.randperm(rows + 2)[:rows]
    want = logits.clone()
    TorchOps().allow(want, at, bits)
    edit_logits.allow(logits, at, bits)
    assert torch.equal(logits, want)


def test_rows_of_a_wider_table_and_none_at_all():
    """Of a table with room for more tokens than the model has."""
    logits, table = torch.ones(2, 7), torch.full((3, 9), 3, dtype=torch.int16)
    one = torch.ones(1)
    edit_logits.penalize(logits, torch.tensor([1]), table[:, :7], torch.tensor([2]), 2 * one, one,
                         one)  # fmt: skip
    assert torch.equal(logits, torch.tensor([[1.0] * 7, [-1.5] * 7]))
    none = torch.zeros(0, dtype=torch.int64)
    edit_logits.penalize(logits, none, table, none, one[:0], one[:0], one[:0])
    edit_logits.allow(logits, none, torch.zeros((0, 1), dtype=torch.int32))
    assert torch.equal(logits[0], torch.ones(7))
