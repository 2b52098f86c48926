"""What finding the likely tokens of a step takes on a GPU: sorting, searching, FlashInfer's masks.

    python -m benchmarks.likely_tokens [--rows 512] [--vocab 128256]

Each line: the way, microseconds, and how many times the copy of the logits that is. FlashInfer's
own draws take one seed for all rows and the row's number beside it, so that what a request gets
depends on its batch; only its masks can be compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from appliance.kernels import filter_logits, torch_ops

ASKED = {"top_k 50": (50, 1.0, 0.0), "top_p 0.9": (0, 0.9, 0.0), "both, min_p": (50, 0.9, 0.02)}


def microseconds(work: Callable[[], object]) -> float:
    for _ in range(3):
        work()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(10):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) * 100


def flashinfer_mask(x: Tensor, top_k: int, top_p: float) -> Tensor:
    import flashinfer

    if top_k:
        x = flashinfer.sampling.top_k_mask_logits(x, top_k)
    return flashinfer.sampling.top_p_renorm_probs(x.softmax(-1), top_p) if top_p < 1 else x


def ways(x: Tensor, into: Tensor, name: str) -> dict[str, Callable[[], object]]:
    """Each works on `into`, which holds the logits."""
    top_k, top_p, min_p = ASKED[name]
    at = torch.arange(len(x), device="cuda", dtype=torch.int32)
    k = torch.full_like(at, top_k or x.shape[1])
    p, m = (torch.full((len(x),), v, device="cuda") for v in (top_p, min_p))
    return {
        "sort": lambda: torch_ops.keep_likely(into, at, k, p, m),
        "search": lambda: filter_logits.keep_likely(into, at, k, p, m),
        "flashinfer, no min_p": lambda: flashinfer_mask(into, top_k, top_p),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=128256)
    options = parser.parse_args()
    for spread in (1.0, 4.0):  # of the logits: as of made-up weights, and as of a trained model
        x = torch.randn(options.rows, options.vocab, device="cuda") * spread
        into = torch.empty_like(x)
        copy = microseconds(partial(into.copy_, x))
        print(f"logits of deviation {spread}: copy {copy:.0f} us")
        for name in ASKED:
            for way, work in ways(x, into, name).items():
                took = microseconds(partial(after_copy, into, x, work)) - copy
                print(f"  {name:12} {way:22} {took:8.0f} us  {took / copy:6.1f} copies")


def after_copy(into: Tensor, x: Tensor, work: Callable[[], object]) -> None:
    into.copy_(x)
    work()


if __name__ == "__main__":
    main()
