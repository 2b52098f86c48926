"""What finding the likely tokens of a step takes on a GPU: sorting, our search, FlashInfer's masks.

    python -m benchmarks.likely_tokens [--rows 512] [--vocab 128256]      every way, checked
    python -m benchmarks.likely_tokens --sweep                            and the search's launches

Every way is timed with a copy of the logits before it, which is taken off again; the search as a
CUDA graph, the others as they come (few rows: what they take is mostly launches).
`draw`: the choice of a token where nothing is filtered, which comes after every way.
`differs`: the largest probability, over the rows, of what is kept by that way and not by the sort,
or the reverse (sums in another order let a token on top-p's border fall either way). The sweep
changes one number of `filter_logits.Launch` at a time, and prints the microseconds of each case and
of each kernel; what is best for 512 rows belongs into `filter_logits.LAUNCH`.
FlashInfer's own draws take one seed for all rows and the row's number beside it, so that what a
request gets depends on its batch; only its masks can be compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from appliance.kernels import filter_logits, torch_ops
from appliance.kernels.filter_logits import LAUNCH, Launch
from benchmarks.gpu_clock import captured, microseconds

ASKED = {"top_k 50": (50, 1.0, 0.0), "top_p 0.9": (0, 0.9, 0.0), "both, min_p": (50, 0.9, 0.02)}
SWEPT: dict[str, tuple[int, ...]] = {
    "bins": (64, 256),
    "part": (8192, 32768),
    "block": (2048, 8192),
    "warps": (4, 16),
    "drop_block": (512, 2048),
    "drop_warps": (2, 8),
    "find_block": (512, 2048),
    "find_warps": (4, 16),
}
"""Other numbers than the ones that serve; each is tried alone."""


def flashinfer_mask(x: Tensor, top_k: int, top_p: float) -> Tensor:
    import flashinfer

    if top_k:
        x = flashinfer.sampling.top_k_mask_logits(x, top_k)
    return flashinfer.sampling.top_p_renorm_probs(x.softmax(-1), top_p) if top_p < 1 else x


def asked(rows: int, vocab: int, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    top_k, top_p, min_p = ASKED[name]
    at = torch.arange(rows, device="cuda", dtype=torch.int32)
    p, m = (torch.full((rows,), value, device="cuda") for value in (top_p, min_p))
    return at, torch.full_like(at, top_k or vocab), p, m


def after_copy(into: Tensor, x: Tensor, work: Callable[[], object]) -> None:
    into.copy_(x)
    work()


def timed(x: Tensor, into: Tensor, work: Callable[[], object]) -> float:
    return microseconds(captured(partial(after_copy, into, x, work)))


def eager(x: Tensor, into: Tensor, work: Callable[[], object]) -> float:
    return microseconds(partial(after_copy, into, x, work))


def compare(x: Tensor, into: Tensor, copy: float) -> None:
    for name, (top_k, top_p, _) in ASKED.items():
        rows = asked(len(x), x.shape[1], name)
        into.copy_(x)
        kept = torch_ops.keep_likely(into, *rows) > -torch.inf
        into.copy_(x)
        differs = (filter_logits.keep_likely(into, *rows) > -torch.inf) != kept
        off = float((x.softmax(-1) * differs).sum(-1).max())
        kept_most, kept_least = int(kept.sum(-1).max()), int(kept.sum(-1).min())
        print(f"  {name:12} kept {kept_least} to {kept_most}; the search differs by {off:.1e}")
        found = {
            "sort": eager(x, into, partial(torch_ops.keep_likely, into, *rows)),
            "search": timed(x, into, partial(filter_logits.keep_likely, into, *rows)),
        }
        try:
            mask = partial(flashinfer_mask, into, top_k, top_p)
            found["flashinfer, no min_p"] = eager(x, into, mask)
        except ImportError:
            pass
        for way, took in found.items():
            print(f"    {way:22} {took - copy:8.0f} us  {(took - copy) / copy:6.1f} copies")


def draw(x: Tensor) -> float:
    """Microseconds of the token's choice itself, where nothing is filtered."""
    from appliance.kernels.cuda_ops import CudaOps

    seeds = torch.randint(0, 1 << 62, (len(x),), device="cuda")
    counters = torch.zeros(len(x), device="cuda", dtype=torch.int32)
    temperature = torch.ones(len(x), device="cuda")
    ops = CudaOps(x.device, search=True)
    return microseconds(captured(partial(ops.gumbel_argmax, x, temperature, seeds, counters)))


def kernels(x: Tensor, into: Tensor, name: str, launch: Launch) -> str:
    """Microseconds of each kernel of the search."""
    rows = asked(len(x), x.shape[1], name)
    into.copy_(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        filter_logits.keep_likely(into, *rows, launch)
        torch.cuda.synchronize()
    own = ("_place_bins", "_count", "_choose", "_drop_low", "_settle")
    took = {e.key: e.self_device_time_total for e in seen.key_averages() if e.key in own}
    return ", ".join(f"{key} {took[key]:.0f}" for key in own if key in took)


def sweep(x: Tensor, into: Tensor, copy: float) -> None:
    tried = [("as it serves", LAUNCH)]
    for name, values in SWEPT.items():
        tried += [(f"{name} {v}", replace(LAUNCH, **{name: v})) for v in values]
    for label, launch in tried:
        found = []
        for name in ASKED:
            work = partial(
                filter_logits.keep_likely, into, *asked(len(x), x.shape[1], name), launch
            )
            found.append(f"{name} {timed(x, into, work) - copy:6.0f}")
        print(f"  {label:18} {'   '.join(found)} us")
    for name in ASKED:
        print(f"  {name:12} {kernels(x, into, name, LAUNCH)} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 64, 16, 1])
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--sweep", action="store_true", help="time the search's launches too")
    options = parser.parse_args()
    for rows in options.rows:
        for spread in (1.0, 4.0):  # of the logits: as of made-up weights, as of a trained model
            torch.manual_seed(rows)
            x = torch.randn(rows, options.vocab, device="cuda") * spread
            into = torch.empty_like(x)
            copy = microseconds(captured(partial(into.copy_, x)))
            print(f"{rows} rows, logits of deviation {spread}: copy {copy:.0f} us", end="")
            print(f", draw {draw(x):.0f} us")
            compare(x, into, copy)
            if options.sweep and rows == max(options.rows):
                sweep(x, into, copy)


if __name__ == "__main__":
    main()
