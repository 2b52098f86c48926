"""Trials of a rank's passes before it serves: kernels are compiled by them, memory is measured,
caches are filled, so that nothing of this happens while somebody waits for an answer."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from msgspec.structs import replace

from appliance.kernels.few_rows import MAX_ROWS
from appliance.kernels.ops import compile_failures
from appliance.runtime.config import RuntimeConfig
from appliance.runtime.engine import memory
from appliance.runtime.engine.executor import DeviceExecutor
from appliance.runtime.engine.kit import PREFILL_SIZES, Kit
from appliance.runtime.engine.load import not_compiled
from appliance.runtime.engine.plain import NotCompiledError, first_line, memory_short
from appliance.runtime.model.batch import KVPages
from appliance.runtime.wire.request import Sampling
from appliance.runtime.wire.step import NewRow, Step

CPU_TOKENS = 64
"""Prompt tokens of the trial on a CPU, where a whole chunk may take seconds."""

Tell = Callable[[Literal["connect", "load", "compile", "plan", "capture"], float, str], None]
"""phase, progress from 0 to 1, detail"""


class Found(NamedTuple):
    """pages: that fit. warmup: (tokens, seconds) of the largest prefill step."""

    pages: int
    warmup: tuple[int, float]


def trial_step(rows: int, length: int, page_size: int, vocab: int, prefill: bool) -> Step:
    """A step of `rows` rows of `length` tokens each (decode: at position `length` - 1), all rows on
    the same pages, sampling with every filter on: as much memory as a real one can take."""
    count = -(-length // page_size)
    slots = np.arange(rows, dtype=np.int32)
    sampling = Sampling(max_tokens=1, temperature=1.0, top_p=0.9, min_p=0.01)
    history = np.zeros(1, dtype=np.int32)
    return Step(
        id=0,
        slots=slots,
        starts=np.full(rows, 0 if prefill else length - 1, dtype=np.int32),
        lengths=np.full(rows, length if prefill else 1, dtype=np.int32),
        prefill_rows=rows if prefill else 0,
        ids=np.arange(rows * length if prefill else 0, dtype=np.int32) % vocab,
        samples=np.ones(rows, dtype=np.bool_),
        outputs=np.zeros(rows, dtype=np.int32),
        page_slots=np.repeat(slots, count),
        page_columns=np.tile(np.arange(count, dtype=np.int32), rows),
        page_ids=np.tile(np.arange(1, count + 1, dtype=np.int32), rows),
        new=[NewRow(int(s), 0, history, 1, sampling) for s in slots],
        freed=[],
    )


def largest_prefill(config: RuntimeConfig) -> tuple[int, int]:
    """Rows, and tokens of each, of a prefill step as large as there can be: no fewer tokens than
    admission gives, and no more rows than have slots. The slot after these is of rows that pad."""
    s, context = config.schedule, config.model.context
    tokens = max(s.page_size, min(s.chunk or s.max_prefill, s.max_prefill))
    rows = min(s.max_running, -(-tokens // context))
    return rows, min(context, -(-tokens // rows))


def compile_kernels(kit: Kit, tell: Tell) -> None:
    """Kernels that come as source are compiled now, by a small pass of each kind, not while
    somebody waits for an answer. NotCompiledError, on every rank, when one cannot be."""
    size = kit.config.schedule.page_size
    pages = kit.pages(1)
    executor = kit.executor(pages)
    why = ""
    try:
        for at, kind in enumerate(("prefill", "decode")):
            tell("compile", at / 3, f"kernels of {kind}")
            executor.follow(trial_step(1, size, size, kit.spec.vocab, prefill=kind == "prefill"))
            if kit.device.type == "cuda":
                torch.cuda.synchronize()
    except compile_failures() as e:
        if memory_short(e):
            raise
        why = first_line(e)
    if kit.comm.smallest(0 if why else 1) == 0:
        raise NotCompiledError(why or "a kernel could not be compiled on another rank")
    if kit.config.engine.few_rows and kit.device.type == "cuda":
        tell("compile", 2 / 3, "the kernel of few rows")
        kit.few_rows(pages)


def compile_chains(kit: Kit, tell: Tell) -> None:
    """What the config has torch compile. HardwareError where it cannot."""
    compiled, device = kit.loaded.compiled, kit.device
    if compiled is None:
        return
    tell("compile", 0.0, "the choice of tokens")
    try:
        compiled.build(device, kit.spec.vocab, lambda p: tell("compile", p, "the choice of tokens"))
    except compile_failures() as e:
        if memory_short(e):
            raise
        raise not_compiled(first_line(e), "gcc" if device.type == "cuda" else "g++") from e


def measure(kit: Kit, page_bytes: int, lap: Callable[[str], None]) -> Found:
    """Pages that fit, from a trial of the largest steps on a small pool."""
    c, spec, device = kit.config, kit.spec, kit.device
    size = c.schedule.page_size
    torch.cuda.synchronize()
    weights = torch.cuda.memory_allocated(device)
    rows, length = largest_prefill(c)
    small = -(-length // size) + 1
    pages = kit.pages(small)
    trial = torch.cuda.memory_allocated(device) - weights
    executor = kit.executor(pages)
    prefill = trial_step(rows, length, size, spec.vocab, prefill=True)
    decode = trial_step(c.schedule.max_running, size, size, spec.vocab, prefill=False)
    peaks = []
    for step in (decode, prefill, prefill):
        torch.cuda.reset_peak_memory_stats(device)
        begin = time.perf_counter()
        executor.follow(step)
        torch.cuda.synchronize()
        warmup = (rows * length, time.perf_counter() - begin)
        peaks.append(torch.cuda.max_memory_allocated(device) - trial - weights)
    both, most = peaks[0] + peaks[-1], max(peaks)
    peak = weights + (both if kit.lanes.apart else most)
    torch.cuda.empty_cache()
    lap("trial")
    graphs = _graph_bytes(kit, pages)
    del executor, pages
    gc.collect()
    torch.cuda.empty_cache()
    found = memory.gpu_pages(c, page_bytes, device, weights, peak, graphs)
    kit.facts.update(
        weights_bytes=found.weights, workspace_bytes=found.workspace, graph_bytes=graphs
    )
    return Found(found.count, warmup)


def _graph_bytes(kit: Kit, pages: list[KVPages]) -> int:
    """Bytes that all captured passes will take: the largest measured, the others like a small
    one, which finds its working memory in the pool of the largest. The smallest of all may be
    one kernel, which takes next to nothing."""
    sizes = kit.config.engine.graph_batch_sizes
    graphs = kit.graphs(pages)
    prefills = kit.prefill_graphs(pages)
    if graphs is None:
        return 0
    small = next((size for size in sizes if size > MAX_ROWS), sizes[0])
    before = _free(kit.device)
    graphs.captures.capture(sizes[-1])
    middle = _free(kit.device)
    graphs.captures.capture(small)
    after = _free(kit.device)
    if prefills is not None:
        prefills.captures.capture(prefills.largest)
    prefill = after - _free(kit.device)
    each = max(1 << 20, middle - after)
    return max(0, before - middle) + max(0, prefill) + each * (len(sizes) + len(PREFILL_SIZES) - 2)


def _free(device: torch.device) -> int:
    """Bytes that the driver has left, when torch keeps none but those in use."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def fill_caches(kit: Kit, executor: DeviceExecutor, pages: int) -> None:
    """The largest steps once more, now that all is in its place: torch keeps their memory, by
    stream. What it must ask the driver for later waits until the GPU has nothing to do."""
    c, spec, size = kit.config, kit.spec, kit.config.schedule.page_size
    rows, length = largest_prefill(c)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # the pieces that captured passes were tried in
    prefill = trial_step(rows, min(length, pages * size), size, spec.vocab, True)
    # beside others it runs other kernels, which are loaded when first needed
    executor.follow(replace(prefill, beside=executor.lanes.apart))
    executor.follow(trial_step(c.schedule.max_running, size, size, spec.vocab, False))
    torch.cuda.synchronize()


def first_steps(kit: Kit, executor: DeviceExecutor, tokens: int) -> tuple[int, float]:
    """One prefill of `tokens` tokens, timed, and one decode step: nothing is made for the
    first time while somebody waits. (tokens, seconds)"""
    size, vocab = kit.config.schedule.page_size, kit.spec.vocab
    executor.follow(trial_step(1, tokens, size, vocab, prefill=True))
    begin = time.perf_counter()
    executor.follow(trial_step(1, tokens, size, vocab, prefill=True))
    seconds = time.perf_counter() - begin
    executor.follow(trial_step(1, tokens, size, vocab, prefill=False))
    return tokens, seconds
