"""Few-row kernels: their meaning in triton's interpreter, their build for sm_90, and on a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="torch brings triton on Linux alone")
triton = sys.modules["triton"]

from appliance.kernels import few_rows  # noqa: E402  (needs triton)

HERE = Path(__file__).parent
cuda = torch.device("cuda")


@pytest.mark.parametrize("seed", [0])
def test_meaning(seed: int) -> None:
    """In the interpreter, which is chosen when triton is imported: so in a process of its own."""
    done = subprocess.run(
        [sys.executable, HERE / "interpreted_few_rows.py", str(seed)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "agrees\n", done.stderr


def built(kernel, signature: dict[str, str], constants: dict[str, object]) -> str:
    """PTX of `kernel` for sm_90, pointers and sizes divisible by 16 as they are when launched."""
    names = list(signature)
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or name in ("N", "K", "stride_token")
    }
    full = {**signature, **dict.fromkeys(constants, "constexpr")}
    source = triton.compiler.ASTSource(kernel, full, constants, aligned)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    options = {"num_warps": 4, "num_stages": 3, "launch_pdl": True}
    return str(triton.compile(source, target=target, options=options).asm["ptx"])


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("weight", ["*fp16", "*fp8e4nv"])
def test_a_matmul_waits_after_it_has_asked_for_weights(
    weight: str, tmp_path: Path, monkeypatch
) -> None:
    """Before the predecessor's end it touches nothing but weights; its loads are pipelined."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ptx = built(
        few_rows._linear,
        {"x": "*fp16", "w": weight, "w_scale": "*fp32", "squares": "*fp32", "add": "*bf16",
         "next_weight": "*bf16", "out": "*fp16", "weighed": "*fp16", "squares_out": "*fp32",
         "M": "i32", "N": "i32", "K": "i32", "pieces": "i32", "eps": "fp32"},
        {"BM": 16, "BN": 16, "BK": 256, "NORM": True, "GATED": True, "ADD": False, "SCALED": True,
         "UNIT": 0.0625, "CHAINED": True, "AHEAD": 2, "LINE_K": 64},
    )  # fmt: skip
    before, after = ptx.split("griddepcontrol.wait")
    assert "prefetch.global.L2" in before and "prefetch.global.L2" not in after
    assert not re.search(r"\b(ld|st|atom|cp)\.(async\.)?\w*\.?global", before)
    assert "griddepcontrol.launch_dependents" in after
    assert "cp.async" in after
    if weight == "*fp8e4nv":  # two at a time, by one instruction
        assert "cvt.rn.f16x2.e4m3x2" in after


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_attention_waits_before_it_reads(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ptx = built(
        few_rows._attend,
        {"qkv": "*bf16", "positions": "*i64", "cos_sin": "*fp32", "q_weight": "*bf16",
         "k_weight": "*bf16", "eps": "fp32", "k_pages": "*bf16", "v_pages": "*bf16",
         "indptr": "*i32", "indices": "*i32", "out": "*bf16", "parts": "*fp32",
         "part_max": "*fp32", "part_sum": "*fp32", "arrived": "*i32", "stride_token": "i32",
         "softmax_scale": "fp32"},
        {"H": 32, "K": 8, "D": 128, "P": 16, "GROUP": 16, "BT": 64, "SPLITS": 8, "NORM": True,
         "UNIT": 1.0, "CHAINED": True},
    )  # fmt: skip
    before, after = ptx.split("griddepcontrol.wait")
    assert not re.search(r"\b(ld|st|atom|cp)\.(async\.)?\w*\.?global", before)
    assert re.search(r"atom\.\S*acq_rel\S*", after)


def relative(out: torch.Tensor, want: torch.Tensor) -> float:
    return float((out.double() - want.double()).norm() / want.double().norm())


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("ahead", [0, 4])
@pytest.mark.parametrize("fp8", [False, True])
def test_a_captured_chain_is_its_eager_self(rows: int, ahead: int, fp8: bool) -> None:
    """Twelve matmuls that each need the one before, captured and played with fresh inputs."""
    tile = few_rows.Tile(rows=16, depth=128, stages=4, warps=4, ahead=ahead)
    norm = torch.rand(1024, device=cuda).bfloat16() + 0.5
    pairs, wide = [], []
    for _ in range(6):
        pair, whole = [], []
        for outs in (2048, 1024):
            values, scale = torch.randn(outs, 1024, device=cuda) / 32, None
            if fp8:
                scale = values.abs().amax(1) / 448
                values = (values / scale[:, None]).to(torch.float8_e4m3fn)
            else:
                values = values.bfloat16()
            pair.append((values, scale, tile))
            whole.append(values.float() * (scale[:, None] if scale is not None else 1.0))
        pairs.append(pair)
        wide.append(whole)
    form = few_rows.Form.against(pairs[0][0][0], torch.bfloat16)
    x = torch.zeros(rows, 1024, device=cuda, dtype=torch.bfloat16)

    def chain() -> torch.Tensor:
        h = few_rows.begin(x, norm, form)
        for gate_up, down in pairs:
            inner = few_rows.normed(h, *gate_up, form, 1e-5, gated=True)
            h = few_rows.summed(inner, *down, form, h.h, norm)
        return h.h

    with torch.cuda.stream(torch.cuda.Stream()):
        chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain()
    for _ in range(20):
        x.copy_(torch.randn(rows, 1024, device=cuda))
        out.fill_(float("nan"))
        graph.replay()
        want = x.float()
        for gate_up, down in wide:
            scale = torch.rsqrt((want**2).mean(1, keepdim=True) + 1e-5)
            gate, up = (want * scale * norm.float() @ gate_up.T).chunk(2, 1)
            want = want + torch.nn.functional.silu(gate) * up @ down.T
        assert relative(out, want) < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, 8])
@pytest.mark.parametrize("norm", [False, True])
def test_attention_on_the_gpu(splits: int, norm: bool) -> None:
    from appliance.kernels.torch_ops import TorchOps

    heads, kv_heads, size, page = 32, 8, 128, 16
    scratch = few_rows.Scratch(16, kv_heads, size, splits, cuda)
    for _ in range(8):
        rows = int(torch.randint(1, 17, ()))
        ends = torch.randint(1, 900, (rows,))
        counts = (ends + page - 1) // page
        indptr = torch.cat([torch.zeros(1), counts.cumsum(0)]).int()
        indices = torch.randperm(int(counts.sum()) + 5)[: int(counts.sum())].int()
        k, v = (
            torch.randn(int(counts.sum()) + 5, page, kv_heads, size, device=cuda).bfloat16()
            for _ in range(2)
        )
        qkv = torch.randn(rows, (heads + 2 * kv_heads) * size, device=cuda).bfloat16()
        table = torch.randn(900, size, device=cuda)
        weights = [(torch.rand(size, device=cuda) + 0.5).bfloat16() if norm else None
                   for _ in range(2)]  # fmt: skip
        last = indices[(indptr[1:] - 1).long()].long()
        kv_rows = (last * page + (ends - 1) % page).to(cuda)
        positions = (ends - 1).to(cuda)
        want_k, want_v = k.float(), v.float()
        q = TorchOps().rope_store(
            qkv.float(), positions, table, want_k, want_v, kv_rows,
            *(w.float() if w is not None else None for w in weights), 1e-6,
        )  # fmt: skip
        got = few_rows.attention(
            qkv, positions, table, k, v, indptr.to(cuda), indices.to(cuda), scratch,
            few_rows.Form(torch.bfloat16, 1.0), softmax_scale=size**-0.5, q_weight_D=weights[0],
            k_weight_D=weights[1], eps=1e-6,
        ).view(rows, heads, size)  # fmt: skip
        for b, end in enumerate(ends.tolist()):
            own = indices[indptr[b] : indptr[b + 1]].long().to(cuda)
            keys = want_k[own].reshape(-1, kv_heads, size)[:end]
            values = want_v[own].reshape(-1, kv_heads, size)[:end]
            scores = torch.einsum("hd,thd->ht", q[b], keys.repeat_interleave(4, 1)) * size**-0.5
            want = torch.einsum("ht,thd->hd", scores.softmax(1), values.repeat_interleave(4, 1))
            assert relative(got[b], want) < 2e-2
        assert relative(k, want_k) < 1e-2
        assert not scratch.arrived.any()
