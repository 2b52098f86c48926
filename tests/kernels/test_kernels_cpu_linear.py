"""Packed linears give what plain ones give, and every row alike in any company."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from appliance.kernels import cpu_linear
from appliance.kernels.cpu_linear import PackedLinear


@pytest.fixture
def packed() -> tuple[torch.Tensor, PackedLinear]:
    weight = torch.randn(200, 96, generator=torch.Generator().manual_seed(3))
    found = cpu_linear.pack(weight)
    if found is None:
        pytest.skip("this torch has no oneDNN")
    return weight, found


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 33, 300])
@pytest.mark.parametrize("biased", [False, True])
def test_as_the_plain_one(
    packed: tuple[torch.Tensor, PackedLinear], rows: int, biased: bool
) -> None:
    weight, linear = packed
    x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows))
    bias = torch.arange(200.0) if biased else None
    right = F.linear(x.double(), weight.double(), bias.double() if bias is not None else None)
    torch.testing.assert_close(linear(x, bias).double(), right, rtol=1e-5, atol=1e-4)


def test_it_takes_views(packed: tuple[torch.Tensor, PackedLinear]) -> None:
    weight, linear = packed
    x = torch.randn(96, 7).T
    torch.testing.assert_close(linear(x), F.linear(x, weight), rtol=1e-5, atol=1e-4)


def test_a_row_is_the_same_in_any_company(packed: tuple[torch.Tensor, PackedLinear]) -> None:
    _, linear = packed
    x = torch.randn(40, 96, generator=torch.Generator().manual_seed(6))
    together = linear(x)
    assert all(torch.equal(linear(x[:n]), together[:n]) for n in range(1, 40))


def test_what_gains_nothing_is_not_packed() -> None:
    assert cpu_linear.pack(torch.ones(4, 4, dtype=torch.float64)) is None
    assert cpu_linear.pack(torch.ones(0)) is None


def test_every_length_is_filled_up_to_few_sizes_and_by_little() -> None:
    sizes = [cpu_linear.bucket(rows) for rows in range(2049)]
    assert sizes[:17] == list(range(17)) and len(set(sizes[1:])) == 72
    assert all(rows <= size <= rows * 1.13 for rows, size in enumerate(sizes))
    assert all(cpu_linear.bucket(size) == size for size in sizes)


def test_rows_that_fill_up_change_nothing(packed: tuple[torch.Tensor, PackedLinear]) -> None:
    weight, linear = packed
    x = torch.randn(301, weight.shape[1])
    out = linear(x)
    assert out.shape == (301, weight.shape[0])
    torch.testing.assert_close(out, x @ weight.T, rtol=1e-4, atol=1e-4)
    assert torch.equal(out[:300], linear(x[:300]))
