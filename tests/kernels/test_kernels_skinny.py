"""Matmuls for few rows: how they are divided, and on a GPU what they give, as part of a capture."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from appliance.kernels import skinny
from appliance.kernels.norm import norm
from appliance.kernels.ops import Rounded
from appliance.kernels.skinny import Division, Form, divided, padded, shared_bytes, why_not

BF16, F16, E4M3 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
HOPPER = 132
SOURCE = Path(skinny.__file__).with_suffix(".cu").read_text()
gpu = pytest.mark.gpu
PADS = (16, 24, 32, 48, 64)


def forms() -> list[Form]:
    """Of models from 0.5B to 70B, whole and in parts, and what comes at odd sizes."""
    sizes = [(896, 4864), (2048, 8192), (2560, 9728), (4096, 14336), (5120, 17408), (8192, 28672)]
    found = []
    for hidden, inner in sizes:
        for kind in (BF16, E4M3):
            for tokens in PADS:
                for outs, depth in ((hidden, hidden), (hidden + 256, hidden), (hidden, inner // 8)):
                    found.append(Form(kind, BF16, outs, depth, tokens))
                found.append(Form(kind, BF16, inner, hidden, tokens, gated=kind is BF16))
    return [*found, Form(BF16, BF16, 128256, 4096, 64), Form(F16, F16, 24, 72, 16)]


@pytest.mark.parametrize("programs", [HOPPER, 114, 78])
def test_every_division_can_be_built(programs: int) -> None:
    for form in forms():
        division = divided(form, programs)
        band, stages, lines = division
        assert band % 8 == 0 and 8 <= band * form.sides <= 256, form
        assert lines in (1, 2, 4) and 3 <= stages <= 8, (form, division)
        assert shared_bytes(form, division) <= 227 << 10, (form, division)
        bands = -(-form.outs // band)
        waves = -(-bands // programs)
        even = -(-form.outs // (8 * programs * waves)) * 8
        assert band <= max(8, even), "no multiprocessor has more than another by eight rows"


def test_the_8b_shape_is_divided_as_was_measured() -> None:
    assert divided(Form(BF16, BF16, 6144, 4096, 32), HOPPER) == Division(48, 5, 4)
    assert divided(Form(BF16, BF16, 4096, 14336, 64), HOPPER) == Division(32, 8, 2)
    assert divided(Form(BF16, BF16, 14336, 4096, 32, gated=True), HOPPER) == Division(112, 6, 1)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tokens", PADS)
def test_what_is_read_behind_a_band_lies_in_the_block_s_memory(tokens: int, gated: bool) -> None:
    """As skinny.cu goes through a stage: tiles of 64 rows, by group, line and side."""
    sides = 2 if gated else 1
    for outs in range(8, 40_000, 8):
        form = Form(E4M3, BF16, outs, 4096, tokens, gated=gated)
        band, stages, lines = division = divided(form, HOPPER)
        tiles = -(-band // 64)
        groups = 2 if tiles > 1 else 1
        last = (-(-tiles // groups) - 1) * groups + groups - 1
        row = (lines - 1) * sides * band + (sides - 1) * band + last * 64 + 64
        stage = (sides * band + tokens) * lines
        assert 1024 + ((stages - 1) * stage + row) * 128 <= shared_bytes(form, division), form


def test_rows_are_filled_up() -> None:
    rows = (1, 16, 17, 24, 25, 32, 33, 48, 49, 64)
    assert [padded(n) for n in rows] == [16, 16, 24, 24, 32, 32, 48, 48, 64, 64]


@pytest.mark.parametrize(
    "outs,depth,kind,capability,word",
    [
        (64, 128, BF16, (9, 0), ""),
        (64, 128, BF16, (8, 9), "compute capability"),
        (64, 128, BF16, (10, 0), "compute capability"),
        (64, 128, torch.float32, (9, 0), "float32"),
        (64, 100, BF16, (9, 0), "16 bytes"),
        (64, 104, BF16, (9, 0), ""),
        (64, 104, E4M3, (9, 0), "16 bytes"),
    ],
)
def test_what_it_does_not_know(outs, depth, kind, capability, word) -> None:
    reason = why_not(outs, depth, kind, capability)
    assert bool(reason) == bool(word) and word in reason


def test_all_that_the_source_asks_for_is_given() -> None:
    form = Form(E4M3, F16, 64, 256, 32, bias=True)
    options = skinny.definitions(form, divided(form, HOPPER))
    given = dict(option.removeprefix("-D").split("=") for option in options)
    listed = re.search(r"Given when it is compiled:(.*?)skinny\.py", SOURCE, re.DOTALL)
    assert listed and set(re.findall(r"\b[A-Z]{4,}\b", listed[1])) == set(given)
    assert (given["KIND"], given["HALF"], given["BIAS"], given["GATED"]) == ("1", "1", "1", "0")


@pytest.fixture
def matmuls() -> skinny.SkinnyMatmuls:
    device = torch.device("cuda")
    if torch.cuda.get_device_capability(device)[0] != 9:
        pytest.skip("not a GPU that these kernels are for")
    return skinny.SkinnyMatmuls(device)


def replayed(work: Callable[[], Tensor | None], times: int = 1) -> Tensor:
    """What a captured graph of it gives; before each replay all that it writes is no number."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()
    assert out is not None, "it is not our kernel that is captured"
    for _ in range(times):
        out.fill_(torch.nan)
        graph.replay()
    return out


def far(found: Tensor, want: Tensor) -> float:
    return float((found.float() - want).norm() / want.norm())


CASES = [
    (rows, outs, depth, dtype)
    for rows, outs, depth in (
        (1, 4096, 4096), (9, 6144, 4096), (16, 4096, 14336), (17, 1000, 520), (24, 896, 896),
        (32, 24, 72), (33, 2568, 2560), (48, 4096, 14336), (63, 33000, 512), (64, 28672, 4096),
        (12, 17000, 512), (20, 17000, 512),
    )
    for dtype in (BF16, F16)
]  # fmt: skip


@gpu
@pytest.mark.parametrize("rows,outs,depth,dtype", CASES)
def test_linear_against_float32(matmuls, rows, outs, depth, dtype) -> None:
    x, w = (torch.randn(n, depth, device="cuda").to(dtype) for n in (rows, outs))
    bias = torch.randn(outs, device="cuda").to(dtype) if rows % 2 else None
    found = replayed(lambda: matmuls.linear(x, w, bias))
    want = x.float() @ w.float().t() + (0 if bias is None else bias.float())
    assert found.dtype is dtype and far(found, want) < (4e-3 if dtype is BF16 else 6e-4)


@gpu
@pytest.mark.parametrize(
    "rows,outs,depth",
    [(12, 14336, 4096), (20, 14336, 4096), (31, 9728, 2560), (40, 8192, 2048), (64, 100, 136)],
)
def test_gated_against_float32(matmuls, rows, outs, depth) -> None:
    x, w = (torch.randn(n, depth, device="cuda").to(BF16) for n in (rows, 2 * outs))
    w *= depth**-0.5
    found = replayed(lambda: matmuls.gated(x, w))
    gate, up = (x.float() @ w.float().t()).chunk(2, 1)
    assert far(found, torch.nn.functional.silu(gate) * up) < 6e-3


@gpu
@pytest.mark.parametrize(
    "rows,outs,depth",
    [
        (9, 6144, 4096), (30, 28672, 4096), (64, 136, 144), (9, 19456, 2560), (30, 19456, 2560),
        (20, 6144, 4096), (40, 4096, 14336), (47, 19456, 2560),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_8_bits_against_float32(matmuls, rows, outs, depth, dtype) -> None:
    """Of what was rounded alike, so that no rounding to 8 bits is in the bound."""
    x, w = (torch.randn(n, depth, device="cuda").mul(30).to(E4M3) for n in (rows, outs))
    scale, own = torch.rand(rows, 1, device="cuda") / 30, torch.rand(outs, device="cuda") / 900
    bias = torch.randn(outs, device="cuda").to(dtype) if rows % 2 else None
    found = replayed(lambda: matmuls.rounded(Rounded(x, scale, dtype), w, own, bias))
    want = (x.float() @ w.float().t()) * scale * own + (0 if bias is None else bias.float())
    assert far(found, want) < 8e-3


@gpu
def test_kernels_that_follow_each_other_wait_for_each_other(matmuls) -> None:
    """Each begins before the one in front has ended; the result is the same a thousand times."""
    x = torch.randn(24, 1024, device="cuda").to(BF16)
    weights = [torch.randn(1024, 1024, device="cuda").to(BF16) / 32 for _ in range(12)]

    def chain() -> Tensor | None:
        h: Tensor | None = x
        for w in weights:
            h = matmuls.linear(h if h is not None else x, w, None)
        return h

    first = replayed(chain).clone()
    want = x.float()
    for w in weights:
        want = want.to(BF16).float() @ w.float().t()
    assert far(first, want) < 2e-2
    for _ in range(10):
        assert torch.equal(replayed(chain, 100), first)


@gpu
@pytest.mark.parametrize("rows,width", [(1, 4096), (24, 4096), (64, 2568)])
def test_norms_between_them(matmuls, rows, width) -> None:
    """As in a decoder: what a norm leaves is multiplied, and added to what it added up."""
    x, h = (torch.randn(rows, width, device="cuda").to(BF16) for _ in "xh")
    scale = (torch.rand(width, device="cuda") + 0.5).to(BF16)
    weights = [torch.randn(width, width, device="cuda").to(BF16) / width**0.5 for _ in range(4)]

    def chain() -> Tensor | None:
        y: Tensor | None = x
        total = h.clone()
        for w in weights:
            y = matmuls.linear(norm(x if y is None else y, total, scale, 1e-5, True), w, None)
        return total if y is None else total + y

    found = replayed(chain, 50)
    total, y = h.float(), x.float()
    for w in weights:
        total = total + y
        normed = torch.nn.functional.rms_norm(total, (width,), scale.float(), 1e-5)
        y = normed @ w.float().t()
    assert far(found, total + y) < 1e-2


@gpu
def test_shapes_by_chance(matmuls) -> None:
    rng = random.Random(3)
    for _ in range(12):
        rows, outs, depth = rng.randint(1, 64), rng.randint(1, 5000), 8 * rng.randint(1, 600)
        x, w = (torch.randn(n, depth, device="cuda").to(BF16) for n in (rows, outs))
        found = replayed(lambda x=x, w=w: matmuls.linear(x, w, None))
        assert far(found, x.float() @ w.float().t()) < 4e-3, (rows, outs, depth)


@gpu
def test_the_library_multiplies_what_is_not_captured_or_too_much(matmuls) -> None:
    x, w = torch.randn(8, 64, device="cuda").to(BF16), torch.randn(64, 64, device="cuda").to(BF16)
    assert matmuls.linear(x, w, None) is None
    many = torch.randn(65, 64, device="cuda").to(BF16)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        assert matmuls.linear(many, w, None) is None
        assert matmuls.linear(x.t(), w, None) is None
        assert matmuls.linear(x.float(), w.float(), None) is None
        assert matmuls.linear(x, w, None) is not None
