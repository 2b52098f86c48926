"""8-bit float: plain torch against arithmetic by hand, and the CUDA kernels against plain torch."""

from __future__ import annotations

import pytest
import torch

from appliance.kernels.ops import Rounding
from appliance.kernels.torch_ops import TorchOps, round_rows, rounded

PLAIN = TorchOps()


def relative(out: torch.Tensor, ref: torch.Tensor) -> float:
    return float((out.double() - ref.double()).norm() / ref.double().norm())


def within(wide: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What of `wide` 8 bits can hold at this scale."""
    return torch.minimum(torch.maximum(wide, -448 * scale), 448 * scale)


def weights(outs: int, ins: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.randn(outs, ins, device=device) * 0.05
    scale = wide.abs().amax(1) / 448
    return (wide / scale[:, None]).to(torch.float8_e4m3fn), scale


def test_rows_keep_their_largest_value():
    x = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 50.0, 1e4, 0.0])[:, None]
    rounded, scale = round_rows(x, None, 0.0)
    back = rounded.float() * scale
    largest = x.abs().amax(1)
    assert torch.allclose(back.abs().amax(1), largest, rtol=1e-6)
    assert ((back - x).abs() <= largest[:, None] / 14).all()
    assert (back[4] == 0).all()


def test_a_cap_bounds_the_scale_and_clips():
    rounded, scale = round_rows(torch.tensor([[1.0, 100.0]]), None, 10.0)
    assert scale.item() == pytest.approx(10 / 448)
    assert (rounded.float() * scale).tolist()[0][1] == pytest.approx(10.0)


def test_linear_is_the_product_of_what_was_rounded():
    torch.manual_seed(0)
    x, (w, scale) = torch.randn(7, 96), weights(40, 96)
    bias = torch.randn(40)
    got = PLAIN.fp8_linear(x, w, scale, None, 0.0, bias)
    rounded, unit = round_rows(x, None, 0.0)
    want = (rounded.double() * unit.double()) @ (w.double() * scale.double()[:, None]).T + bias
    assert relative(got, want) < 1e-6
    assert relative(got, x @ (w.float() * scale[:, None]).T + bias) < 0.05
    fixed = PLAIN.fp8_linear(x, w, scale, torch.tensor([0.01]), 0.0, None)
    assert relative(fixed, x @ (w.float() * scale[:, None]).T) < 0.06


@pytest.mark.parametrize("outs,ins", [(256, 384), (200, 300)])
def test_block_linear_spreads_the_scales(outs, ins):
    torch.manual_seed(1)
    x = torch.randn(5, ins)
    w = (torch.randn(outs, ins) * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-outs // 128), -(-ins // 128)) * 0.01 + 0.001
    wide = torch.empty(outs, ins)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = slice(i * 128, (i + 1) * 128), slice(j * 128, (j + 1) * 128)
            wide[part] = w[part].float() * scale[i, j]
    assert relative(PLAIN.fp8_block_linear(x, w, scale, None), x @ wide.T) < 0.05


@pytest.mark.parametrize("ins", [128, 300])
def test_a_product_of_runs_that_were_rounded_before_is_the_same(ins):
    torch.manual_seed(2)
    x, w = torch.randn(5, ins), torch.randn(200, ins).to(torch.float8_e4m3fn)
    scale = torch.rand(2, -(-ins // 128)) * 0.01 + 0.001
    before = rounded(x, Rounding(None, 0.0, 128))
    assert before.scale.shape == (5, -(-ins // 128)) and before.values.shape == x.shape
    want = PLAIN.fp8_block_linear(x, w, scale, None)
    assert torch.equal(PLAIN.fp8_block_linear(before, w, scale, None), want)


@pytest.mark.parametrize(
    "how", [Rounding(torch.tensor([0.01]), 0.0), Rounding(None, 1.5), Rounding(None, 0.0, 128)]
)
def test_what_is_rounded_is_contiguous(how):
    """As GPUs' products ask for it: `torch._scaled_mm` refuses a scale that was only spread."""
    values, scale, _ = rounded(torch.randn(31, 300), how)
    assert values.is_contiguous() and scale.is_contiguous()


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 33, 300])
@pytest.mark.parametrize("outs,ins", [(6144, 4096), (256, 1024)])
@pytest.mark.parametrize("fixed", [False, True])
def test_cuda_linear(rows, outs, ins, fixed):
    from appliance.kernels.cuda_ops import CudaOps

    torch.manual_seed(rows)
    x = torch.randn(rows, ins, device="cuda", dtype=torch.bfloat16)
    w, scale = weights(outs, ins, "cuda")
    unit = torch.tensor([0.012], device="cuda") if fixed else None
    bias = torch.randn(outs, device="cuda", dtype=torch.bfloat16)
    got = CudaOps(torch.device("cuda")).fp8_linear(x, w, scale, unit, 0.0, bias)
    assert relative(got, PLAIN.fp8_linear(x.float(), w, scale, unit, 0.0, bias)) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 40, 300])
@pytest.mark.parametrize("outs,ins", [(6144, 4096), (200, 384)])
def test_cuda_block_linear(rows, outs, ins):
    from appliance.kernels.cuda_ops import CudaOps

    torch.manual_seed(rows)
    x = torch.randn(rows, ins, device="cuda", dtype=torch.bfloat16)
    w = (torch.randn(outs, ins, device="cuda") * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-outs // 128), -(-ins // 128), device="cuda") * 0.01 + 0.001
    got = CudaOps(torch.device("cuda")).fp8_block_linear(x, w, scale, None)
    assert relative(got, PLAIN.fp8_block_linear(x.float(), w, scale, None)) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 33, 300])
@pytest.mark.parametrize("width", [4096, 14336, 1000])
@pytest.mark.parametrize("fixed", [False, True])
def test_cuda_rounding_before_the_linear(rows, width, fixed):
    """What norm and activation leave is what they and the rounding leave as two kernels."""
    from appliance.kernels import gemm_fp8
    from appliance.kernels.cuda_ops import CudaOps

    ops = CudaOps(torch.device("cuda"))
    torch.manual_seed(rows)
    x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
    residual = torch.randn_like(x)
    weight = torch.rand(width, device="cuda", dtype=torch.bfloat16) + 0.5
    how = Rounding(torch.tensor([0.012], device="cuda") if fixed else None, 0.0)
    both = torch.cat((x, residual), 1)
    normed, total = ops.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    own, own_total = ops.rounded_norm(x.clone(), residual.clone(), weight, 1e-5, how)
    assert relative(own_total, total) < 1e-2
    pairs = [
        (own, normed),
        (ops.rounded_norm(x, None, weight, 1e-5, how)[0], ops.rms_norm(x, weight, 1e-5)),
        (ops.rounded_silu_and_mul(both, how), ops.silu_and_mul(both)),
    ]
    for got, wide in pairs:
        values, scale = gemm_fp8.round_rows(wide, how.fixed, how.cap)
        assert torch.allclose(got.scale, scale, rtol=2e-2)
        back = got.values.float() * got.scale
        assert relative(back, values.float() * scale) < 3e-2
        # a fixed scale clips what lies beyond 448 of it, which is no error of rounding; the rest is
        # within half a step of 8 bits: at most 1 / 16, in the mean square 1 / 16 / sqrt(3) = 0.036
        assert relative(back, within(wide.float(), scale)) < 0.036
    runs = Rounding(None, 0.0, 128)
    for by_run, wide in (
        (ops.rounded_norm(x, None, weight, 1e-5, runs)[0], pairs[1][1]),
        (ops.rounded_silu_and_mul(both, runs), pairs[2][1]),
    ):
        values, scale = gemm_fp8.round_runs(wide)
        assert torch.allclose(by_run.scale, scale, rtol=2e-2)
        mine, theirs = (s.repeat_interleave(128, 1)[:, :width] for s in (by_run.scale, scale))
        assert relative(by_run.values.float() * mine, wide) < 0.036
        assert relative(by_run.values.float() * mine, values.float() * theirs) < 3e-2
    w, unit = weights(256, width, "cuda")
    if width % 16 == 0:
        got = ops.fp8_linear(own, w, unit, how.fixed, how.cap, None)
        assert got.dtype == torch.bfloat16
        assert relative(got, ops.fp8_linear(normed, w, unit, how.fixed, how.cap, None)) < 3e-2
