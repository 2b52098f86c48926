"""The kernels that round for 8-bit linears compile for a GPU that is not there."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from appliance.kernels import gemm_fp8, round_fused
from tests.kernels.test_kernels_compile import assert_compiles

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
GIVEN = {"x": "*bf16", "out": "*fp8e4nv", "scale": "*fp32", "fixed": "*fp32", "cap": "fp32",
         "stride": "i32", "scales": "i32"}  # fmt: skip


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


def _ordered(kernel, own: dict[str, str]) -> dict[str, str]:
    types = {**GIVEN, **own}
    return {name: types[name] for name in kernel.arg_names if name in types}
