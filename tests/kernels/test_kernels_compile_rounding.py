"""The kernels that round for 8-bit linears compile for a GPU that is not there."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from appliance.kernels import gemm_fp8, round_fused
from tests.kernels.test_kernels_compile import assert_compiles

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
GIVEN = {"x": "*bf16", "out": "*fp8e4nv", "scale": "*fp32", "fixed": "*fp32", "cap": "fp32",
         "stride": "i32", "apart": "i32"}  # fmt: skip


@pytest.mark.parametrize("fixed,run", [(False, 0), (True, 0), (False, 128)])
def test_rounding_kernels(fixed: bool, run: int) -> None:
    of_both = {"FIXED": fixed, "RUN": run, "BLOCK": 4096, "DEPENDENT": fixed}
    norm = {"residual": "*bf16", "weight": "*bf16", "eps": "fp32", "E": "i32"}
    assert_compiles(round_fused._norm, _ordered(round_fused._norm, norm), {**of_both, "ADD": True})
    silu = _ordered(round_fused._silu_mul, {"INNER": "i32"})
    assert_compiles(round_fused._silu_mul, silu, of_both)
    rows = _ordered(gemm_fp8._round_rows, {"K": "i32"})
    del of_both["RUN"]
    assert_compiles(gemm_fp8._round_rows, rows, of_both)


@pytest.mark.parametrize("dependent", [False, True])
def test_rounding_of_runs(dependent: bool) -> None:
    runs = _ordered(gemm_fp8._round_runs, {"K": "i32"})
    fixed = {"RUN": 128, "SPAN": 8, "DEPENDENT": dependent}
    assert_compiles(gemm_fp8._round_runs, runs, fixed)


@pytest.mark.parametrize("tile,bias", [(16, False), (64, True), (128, True)])
def test_product_by_blocks(tile: int, bias: bool) -> None:
    given = {"x": "*fp8e4nv", "w": "*fp8e4nv", "out": "*bf16", "bias": "*bf16"}
    given |= dict.fromkeys(("x_scale", "w_scale"), "*fp32") | dict.fromkeys("MNK", "i32")
    given["RUNS"] = "i32"
    fixed = {"BM": tile, "BN": 128, "BK": 128, "BIAS": bias}
    assert_compiles(gemm_fp8._block_matmul, _ordered(gemm_fp8._block_matmul, given), fixed)


def _ordered(kernel, own: dict[str, str]) -> dict[str, str]:
    types = {**GIVEN, **own}
    return {name: types[name] for name in kernel.arg_names if name in types}
