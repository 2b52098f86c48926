"""Triton kernels compile for a GPU that is not there, which the interpreter does not show."""

from __future__ import annotations

from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from appliance.kernels import draw, edit_logits, norm, rope  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
HOPPER = GPUTarget("cuda", 90, 32)


@pytest.mark.parametrize("kind,largest", [("*bf16", 0.0), ("*fp8e4nv", 448.0)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("together", [1, 8])
def test_rope_store(kind: str, largest: float, norm: bool, together: int) -> None:
    kernel = rope._rope_store
    types = {
        "qkv": "*bf16", "positions": "*i64", "cos_sin": "*fp32", "kv_rows": "*i64",
        "q_out": "*bf16", "k_pages": kind, "v_pages": kind, "q_weight": "*bf16",
        "k_weight": "*bf16", "eps": "fp32", "stride_token": "i32", "k_scale": "fp32",
        "v_scale": "fp32",
    }  # fmt: skip
    fixed = {
        "H": 32, "K": 8, "D": 128, "N": together, "NORM": norm, "LARGEST": largest,
        "DEPENDENT": norm,
    }  # fmt: skip
    assert_compiles(kernel, types, fixed)


@pytest.mark.parametrize("dependent", [False, True])
def test_norm(dependent: bool) -> None:
    types = {
        "x": "*bf16", "residual": "*bf16", "weight": "*bf16", "out": "*bf16", "eps": "fp32",
        "E": "i32",
    }  # fmt: skip
    fixed = {"ADD": dependent, "BLOCK": 4096, "DEPENDENT": dependent}
    assert_compiles(norm._norm, types, fixed)


def test_edit_logits() -> None:
    penalties = {
        "logits": "*fp32", "at": "*i64", "table": "*i16", "rows": "*i64", "repetition": "*fp32",
        "frequency": "*fp32", "presence": "*fp32", "V": "i32", "stride": "i32",
        "table_stride": "i32",
    }  # fmt: skip
    masks = {"logits": "*fp32", "at": "*i64", "bits": "*i32", "V": "i32", "W": "i32",
             "stride": "i32"}  # fmt: skip
    assert_compiles(edit_logits._penalize, penalties, {"BLOCK": 2048})
    assert_compiles(edit_logits._allow, masks, {"BLOCK": 2048})


@pytest.mark.parametrize("kind", ["*bf16", "*fp32"])
def test_draw(kind: str) -> None:
    types = {
        "logits": kind, "stride": "i32", "temperature": "*fp32", "seeds": "*i64",
        "counters": "*i32", "best_value": "*fp32", "best_index": "*i32", "vocab": "i32",
        "parts": "i32",
    }  # fmt: skip
    assert_compiles(draw._gumbel_part, types, {"BLOCK": 4096})


def assert_compiles(
    kernel: triton.JITFunction, types: dict[str, str], fixed: dict[str, Any]
) -> None:
    source = ASTSource(
        kernel,
        {**types, **dict.fromkeys(fixed, "constexpr")},
        {(kernel.arg_names.index(name),): value for name, value in fixed.items()},
    )
    found = triton.compile(source, target=HOPPER, options={"num_warps": 4})
    assert len(found.asm["cubin"]) > 0
