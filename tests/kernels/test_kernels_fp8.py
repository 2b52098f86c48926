"""8-bit float: plain torch against arithmetic by hand, and the CUDA kernels against plain torch."""

from __future__ import annotations

import pytest
import torch

from appliance.kernels.ops import Rounded, Rounding
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


def blocks(outs: int, ins: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 weights, and a scale for each 128 × 128 that is much unlike the next."""
    wide = torch.randn(outs, ins, device=device) * 100
    scale = torch.rand(-(-outs // 128), -(-ins // 128), device=device) * 0.01 + 0.001
    return wide.clamp(-448, 448).to(torch.float8_e4m3fn), scale


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


HOPPER, SINCE = (9, 0), (12, 9)


@pytest.mark.parametrize(
    "outs,ins,capability,cuda,takes",
    [
        (6144, 4096, HOPPER, SINCE, True),
        (576, 896, HOPPER, (13, 0), True),
        (200, 384, HOPPER, SINCE, False),
        (4096, 300, HOPPER, SINCE, False),
        (6144, 4096, HOPPER, (12, 8), False),
        (6144, 4096, (10, 0), (13, 0), False),
        (6144, 4096, (8, 9), (13, 0), False),
        (6144, 4096, (9, 4), (0,), False),
    ],
)
def test_which_weights_of_blocks_the_library_multiplies_by(outs, ins, capability, cuda, takes):
    gemm_fp8 = pytest.importorskip("appliance.kernels.gemm_fp8")
    assert gemm_fp8.library_multiplies(outs, ins, capability, cuda) is takes


@pytest.mark.parametrize("rows", range(1, 10))
def test_room_by_runs_holds_whole_fours_of_tokens(rows):
    gemm_fp8 = pytest.importorskip("appliance.kernels.gemm_fp8")
    room = -(-rows // 4) * 4
    values, scale = gemm_fp8.room_by_runs(rows, 300, 128, torch.float32, torch.device("cpu"))
    assert values.shape == (rows, 300) and values.is_contiguous()
    assert scale.shape == (rows, 3) and scale.stride() == (1, room)
    for given in ((values.fill_(1), scale.fill_(2)), (values.clone(), scale.contiguous())):
        laid = gemm_fp8.laid_out(*given)
        assert (laid[0] is values) is (given[0] is values)
        whole, units = gemm_fp8._with_room(*laid)
        assert whole.shape == (room, 300) and units.shape == (room, 3)
        assert units.stride() == (1, room)
        assert (whole[:rows] == 1).all() and (units[:rows] == 2).all()


@pytest.mark.parametrize("laid", [False, True])
@pytest.mark.parametrize("rows,outs,ins", [(1, 128, 512), (5, 640, 896), (8, 576, 128)])
def test_the_library_is_given_scales_as_it_reads_them(monkeypatch, rows, outs, ins, laid):
    """What of its room nobody has written must not be seen, so it is not a number here."""
    gemm_fp8 = pytest.importorskip("appliance.kernels.gemm_fp8")

    def library(values, weight, scale_a, recipe_a, _, scale_b, recipe_b, __, bias, dtype):
        count, runs = len(values), -(-ins // 128)
        room = -(-runs // 4) * 4
        assert count % 4 == 0 and weight.stride() == (1, ins) and (recipe_a, recipe_b) == ([4], [5])
        assert scale_a[0].shape == (count, runs) and scale_a[0].stride() == (1, count)
        assert scale_b[0].shape == (room, -(-outs // 128)) and scale_b[0].stride()[0] == 1
        assert scale_b[0].stride()[1] == room
        given = Rounded(values, scale_a[0], dtype)
        return PLAIN.fp8_block_linear(given, weight.t(), scale_b[0].t()[:, :runs], bias)

    monkeypatch.setattr(gemm_fp8, "_on", lambda device: (HOPPER, SINCE))
    monkeypatch.setattr(torch, "_scaled_mm_v2", library)
    torch.manual_seed(rows)
    x, (w, scale), bias = torch.randn(rows, ins), blocks(outs, ins), torch.randn(outs)
    before = rounded(x, Rounding(None, 0.0, 128))
    if laid:
        values, units = gemm_fp8.room_by_runs(rows, ins, 128, before.values.dtype, x.device)
        values.as_strided((-(-rows // 4) * 4, ins), (ins, 1)).view(torch.uint8).fill_(0x7F)
        before = Rounded(values.copy_(before.values), units.copy_(before.scale), x.dtype)
    got = gemm_fp8.block_linear(before, w, scale, bias)
    assert got.shape == (rows, outs) and got.is_contiguous()
    assert relative(got, PLAIN.fp8_block_linear(x, w, scale, bias)) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 33, 300])
@pytest.mark.parametrize(
    "outs,ins", [(6144, 4096), (4096, 2560), (640, 896), (576, 4864), (256, 1024), (200, 384)]
)
@pytest.mark.parametrize("biased", [False, True])
def test_cuda_block_linear(rows, outs, ins, biased):
    """The way that serves here, and our kernel, whichever that way is; given tokens, or what was
    rounded before, laid as a GPU's rounding lays it or contiguous."""
    from appliance.kernels import gemm_fp8
    from appliance.kernels.cuda_ops import CudaOps

    torch.manual_seed(rows)
    x = torch.randn(rows, ins, device="cuda", dtype=torch.bfloat16)
    w, scale = blocks(outs, ins, "cuda")
    bias = torch.randn(outs, device="cuda", dtype=torch.bfloat16) if biased else None
    want = PLAIN.fp8_block_linear(x.float(), w, scale, bias)
    values, units = gemm_fp8.round_runs(x)
    for given in (x, *(Rounded(values, u, x.dtype) for u in (units, units.contiguous()))):
        got = CudaOps(torch.device("cuda")).fp8_block_linear(given, w, scale, bias)
        assert got.shape == (rows, outs) and got.dtype == x.dtype
        assert relative(got, want) < 1e-2
    ours = gemm_fp8.blocks_by_kernel(Rounded(values, units, x.dtype), w, scale, bias)
    assert relative(ours, want) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 64, 1001])
@pytest.mark.parametrize("outs,ins", [(6144, 4096), (4096, 4864), (576, 7168)])
def test_cuda_block_linear_beside_something_else(rows, outs, ins):
    """A prefill beside decode steps leaves them multiprocessors: that, too, must be taken."""
    from appliance.kernels.cuda_ops import CudaOps
    from appliance.kernels.multiprocessors import Room, spared

    device = torch.device("cuda", torch.cuda.current_device())
    x = torch.randn(rows, ins, device=device, dtype=torch.bfloat16)
    w, scale = blocks(outs, ins, "cuda")
    with Room(device, spared(device)).left():
        got = CudaOps(device).fp8_block_linear(x, w, scale, None)
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
