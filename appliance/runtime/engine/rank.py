"""Builds one rank's Executor from the config, and follows the ring on ranks other than 0."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from msgspec.structs import replace
from torch.profiler import record_function

from appliance.errors import HardwareError
from appliance.kernels.few_rows import MAX_ROWS
from appliance.kernels.multiprocessors import Room, spared
from appliance.kernels.ops import CaptureOps
from appliance.runtime.config import RuntimeConfig
from appliance.runtime.engine import memory
from appliance.runtime.engine.executor import DeviceExecutor, StepFlight
from appliance.runtime.engine.forward import Forward
from appliance.runtime.engine.graphs import DecodeGraphs, SmallPass
from appliance.runtime.engine.inputs import Staging, Stopwatch
from appliance.runtime.engine.kv import pool
from appliance.runtime.engine.lanes import Lanes
from appliance.runtime.engine.load import DTYPES, Loaded, kv_dtype, load_model
from appliance.runtime.engine.plain import NotCompiledError, first_line, in_plain_torch
from appliance.runtime.engine.prefill_graphs import PrefillGraphs
from appliance.runtime.engine.sample.state import SamplingState
from appliance.runtime.engine.slots import Slots
from appliance.runtime.model.batch import KVPages
from appliance.runtime.model.few_rows import FewRows, why_not
from appliance.runtime.model.parallel.comm import Comm, connect
from appliance.runtime.model.parallel.mesh import Mesh
from appliance.runtime.spec import ModelSpec
from appliance.runtime.wire.codec import decode_step, encode
from appliance.runtime.wire.request import Sampling
from appliance.runtime.wire.ring import RingReader, RingWriter
from appliance.runtime.wire.step import NewRow, Step

PREFILL_SIZES = (*range(32, 257, 32), *range(320, 513, 64), *range(640, 1025, 128))
"""Token counts at which a prefill is captured; past them launches hide behind arithmetic."""

log = logging.getLogger(__name__)

_CPU_TRIAL = 64
"""Prompt tokens of the trial on a CPU, where a whole chunk may take seconds."""

Tell = Callable[[Literal["connect", "load", "compile", "plan", "capture"], float, str], None]
"""phase, progress from 0 to 1, detail"""


@dataclass(frozen=True, slots=True)
class Built:
    """A rank ready for steps. pages: usable pages, the same on every rank.

    warmup: (tokens, seconds) of the largest prefill step that was tried.
    """

    executor: DeviceExecutor
    pages: int
    facts: dict[str, Any]
    warmup: tuple[int, float]


class RingExecutor:
    """Rank 0 of several: every step goes to the others before it is launched here."""

    def __init__(self, local: DeviceExecutor, ring: RingWriter) -> None:
        self._local, self._ring = local, ring

    def launch(self, step: Step) -> StepFlight:
        self._ring.write(encode(step))
        return self._local.launch(step)


def follow(executor: DeviceExecutor, ring: RingReader, beat: Callable[[int], None]) -> None:
    """Ranks 1 … n-1: every step of the ring, until the process is ended."""
    done = 0
    while True:
        data = ring.read(timeout=0.5)
        if data is not None:
            executor.follow(decode_step(data))
            done += 1
        beat(done)


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


class RankBuilder:
    """One use: build(). meeting: the file ranks rendezvous at (tp > 1)."""

    def __init__(
        self,
        config: RuntimeConfig,
        spec: ModelSpec,
        rank: int,
        local_device: int,
        meeting: Path | None,
        tell: Tell,
    ) -> None:
        self._config, self._spec, self._tell = config, spec, tell
        self._mesh = Mesh(rank, config.engine.tp)
        self._device = self._open_device(local_device)
        self._facts: dict[str, Any] = {}
        if config.engine.tp > 1:
            tell("connect", 0.0, "")
        self._comm: Comm = connect(self._mesh, self._device, meeting)
        if config.engine.try_links:
            self._facts.update(self._comm.try_links())
        self._warmup = (0, 0.0)
        self._clock = time.perf_counter()

    def _open_device(self, index: int) -> torch.device:
        torch.set_num_threads(max(1, self._config.engine.threads))
        if self._config.engine.device != "cuda":
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise HardwareError(
                "torch sees no CUDA device.",
                "Run `appliance doctor`: it compares driver, CUDA and torch.",
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        return device

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self._facts[f"{name}_s"] = round(now - self._clock, 3)
        self._clock = now

    def build(self) -> Built:
        """By plain torch where a kernel cannot be compiled here, which is said."""
        why = ""
        try:
            return self._build()
        except NotCompiledError as e:
            why = str(e)
        gc.collect()  # what the first try has loaded
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        log.error("plain torch computes, many times slower than kernels would: %s", why)
        self._facts["plain"] = why
        self._config = in_plain_torch(self._config)
        return self._build()

    @torch.inference_mode()
    def _build(self) -> Built:
        c, spec = self._config, self._spec
        self._tell("load", 0.0, "")
        try:
            loaded = load_model(
                c, spec, self._mesh, self._comm, self._device,
                lambda p: self._tell("load", p, ""), "plain" in self._facts,
            )  # fmt: skip
        except ImportError as e:
            raise NotCompiledError(first_line(e)) from None
        self._lap("load")
        dtype, size = DTYPES[c.model.dtype], c.schedule.page_size
        span = record_function if c.engine.profile_steps else None
        lanes = self._lanes(loaded, Stopwatch(span))
        staging = lanes.main.staging
        slots = Slots(c.schedule.max_running, loaded.columns, loaded.ops, self._device)
        state = SamplingState(c.schedule.max_running, spec.vocab, self._device)
        page_bytes = pool.page_bytes(spec, self._mesh, size, kv_dtype(c))
        if c.engine.attention != "reference":
            self._compile(loaded, lanes, slots, state)
        self._tell("plan", 0.0, "")
        if self._device.type == "cuda":
            count = self._measure(loaded, lanes, slots, state, page_bytes)
        else:
            count = memory.cpu_pages(c, page_bytes)
        if c.engine.max_total_tokens:
            count = min(count, max(1, c.engine.max_total_tokens // size))
        count = self._comm.smallest(count)
        pages = pool.allocate(spec, self._mesh, size, count, kv_dtype(c), self._device)
        self._facts.update(pages=count, page_size=size, kv_bytes=count * page_bytes)
        self._lap("plan")
        graphs = self._graphs(loaded, staging, slots, pages, dtype)
        if graphs is not None:
            graphs.capture_all(lambda p: self._tell("capture", p, ""))
            self._lap("capture")
        prefills = self._prefill_graphs(loaded, staging, slots, pages, dtype)
        if prefills is not None:
            prefills.capture_all(lambda p: self._tell("capture", p, "prefill"))
            self._lap("capture_prefill")
        forward = Forward(loaded.model, slots, pages, size, graphs, prefills)
        executor = self._executor(forward, loaded, slots, state, lanes)
        if self._device.type == "cuda":
            self._fill_caches(executor, count)
        else:
            self._try(executor, min(_CPU_TRIAL, count * size, c.model.context))
        gc.collect()
        gc.freeze()  # what is built now lives as long as the process; collections skip it
        return Built(executor, count, self._facts, self._warmup)

    def _compile(self, loaded: Loaded, lanes: Lanes, slots: Slots, state: SamplingState) -> None:
        """Kernels that come as source are compiled now, by a small pass of each kind, not while
        somebody waits for an answer. NotCompiledError, on every rank, when one cannot be."""
        c, spec, size = self._config, self._spec, self._config.schedule.page_size
        pages = pool.allocate(spec, self._mesh, size, 1, kv_dtype(c), self._device)
        executor = self._executor(
            Forward(loaded.model, slots, pages, size), loaded, slots, state, lanes
        )
        why = ""
        try:
            for at, kind in enumerate(("prefill", "decode")):
                self._tell("compile", at / 3, f"kernels of {kind}")
                executor.follow(trial_step(1, size, size, spec.vocab, prefill=kind == "prefill"))
                if self._device.type == "cuda":
                    torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # each compiler has its own
            why = first_line(e)
        if self._comm.smallest(0 if why else 1) == 0:
            raise NotCompiledError(why or "a kernel could not be compiled on another rank")
        if c.engine.few_rows and self._device.type == "cuda":
            self._tell("compile", 2 / 3, "the kernel of few rows")
            self._few_rows(loaded, pages)
        self._lap("compile")

    def _fill_caches(self, executor: DeviceExecutor, pages: int) -> None:
        """The largest steps once more, now that all is in its place: torch keeps their memory, by
        stream. What it must ask the driver for later waits until the GPU has nothing to do."""
        c, spec, size = self._config, self._spec, self._config.schedule.page_size
        tokens = c.schedule.chunk or c.schedule.max_prefill
        length = min(tokens, c.model.context, pages * size)
        prefill = trial_step(max(1, tokens // length), length, size, spec.vocab, True)
        # beside others it runs other kernels, which are loaded when first needed
        executor.follow(replace(prefill, beside=executor.lanes.apart))
        executor.follow(trial_step(c.schedule.max_running, size, size, spec.vocab, False))
        torch.cuda.synchronize()
        self._lap("fill")

    def _try(self, executor: DeviceExecutor, tokens: int) -> None:
        """One prefill of `tokens` tokens, timed, and one decode step: nothing is made for the
        first time while somebody waits."""
        size, vocab = self._config.schedule.page_size, self._spec.vocab
        executor.follow(trial_step(1, tokens, size, vocab, prefill=True))
        begin = time.perf_counter()
        executor.follow(trial_step(1, tokens, size, vocab, prefill=True))
        self._warmup = (tokens, time.perf_counter() - begin)
        executor.follow(trial_step(1, tokens, size, vocab, prefill=False))

    def _lanes(self, loaded: Loaded, stopwatch: Stopwatch) -> Lanes:
        """Two where prefills may run beside decode steps. On a GPU the main one becomes the current
        stream; what it queues goes first."""
        device = self._device
        main = Staging(device, 1 << 20, stopwatch)
        if device.type != "cuda":
            return Lanes(main)
        torch.cuda.synchronize()
        torch.cuda.set_stream(torch.cuda.Stream(device, priority=-1))
        if not self._config.schedule.beside_rows or not loaded.backend.apart or self._mesh.tp > 1:
            return Lanes(main)
        try:
            room = Room(device, spared(device))
        except RuntimeError as e:
            log.warning("prefills and decode steps take turns: %s", e)
            return Lanes(main)
        return Lanes(main, Staging(device, 1 << 20, stopwatch), room)

    def _executor(
        self,
        forward: Forward,
        loaded: Loaded,
        slots: Slots,
        state: SamplingState,
        lanes: Lanes,
    ) -> DeviceExecutor:
        return DeviceExecutor(
            forward,
            loaded.model.logits,
            slots,
            state,
            loaded.ops,
            lanes,
            self._comm,
            leads=self._mesh.rank == 0,
        )

    def _graphs(
        self,
        loaded: Loaded,
        staging: Staging,
        slots: Slots,
        pages: list[KVPages],
        dtype: torch.dtype,
    ) -> DecodeGraphs | None:
        e = self._config.engine
        if self._device.type != "cuda" or not e.graphs or not e.graph_batch_sizes:
            return None
        return DecodeGraphs(
            loaded.model,
            loaded.backend,
            cast(CaptureOps, loaded.ops),
            slots,
            pages,
            self._config.schedule.page_size,
            self._spec.hidden,
            dtype,
            e.graph_batch_sizes,
            staging,
            self._few_rows(loaded, pages),
            MAX_ROWS,
        )

    def _few_rows(self, loaded: Loaded, pages: list[KVPages]) -> SmallPass | None:
        """The plan has looked at GPU and model; what only the loaded model or this machine's
        libraries tell makes the passes run as all others do, and is said."""
        if not self._config.engine.few_rows:
            return None
        size = self._config.schedule.page_size
        reason = why_not(loaded.model, self._spec, self._mesh.tp, pages, size)
        try:
            return None if reason else FewRows(loaded.model, self._spec, pages, size)
        except RuntimeError as e:
            reason = str(e)
        finally:
            if reason:
                self._facts["few_rows"] = reason
                log.warning("no kernel of its own for few rows: %s", reason)
        return None

    def _prefill_graphs(
        self,
        loaded: Loaded,
        staging: Staging,
        slots: Slots,
        pages: list[KVPages],
        dtype: torch.dtype,
    ) -> PrefillGraphs | None:
        e = self._config.engine
        if self._device.type != "cuda" or not e.graphs or not e.graph_batch_sizes:
            return None
        return PrefillGraphs(
            loaded.model,
            loaded.backend,
            slots,
            pages,
            self._config.schedule.page_size,
            self._spec.hidden,
            dtype,
            tuple(s for s in PREFILL_SIZES if s <= self._config.model.context),
            staging,
        )

    def _measure(
        self,
        loaded: Loaded,
        lanes: Lanes,
        slots: Slots,
        state: SamplingState,
        page_bytes: int,
    ) -> int:
        """Pages that fit, from a trial of the largest steps on a small pool."""
        c, spec, device = self._config, self._spec, self._device
        dtype, size = DTYPES[c.model.dtype], c.schedule.page_size
        torch.cuda.synchronize()
        weights = torch.cuda.memory_allocated(device)
        length = min(c.schedule.chunk or c.schedule.max_prefill, c.model.context)
        small = -(-length // size) + 1
        pages = pool.allocate(spec, self._mesh, size, small, kv_dtype(c), device)
        trial = torch.cuda.memory_allocated(device) - weights
        executor = self._executor(
            Forward(loaded.model, slots, pages, size), loaded, slots, state, lanes
        )
        tokens = c.schedule.chunk or c.schedule.max_prefill
        prefill = trial_step(max(1, tokens // length), length, size, spec.vocab, prefill=True)
        decode = trial_step(c.schedule.max_running, size, size, spec.vocab, prefill=False)
        peaks = []
        for step in (decode, prefill, prefill):
            torch.cuda.reset_peak_memory_stats(device)
            begin = time.perf_counter()
            executor.follow(step)
            torch.cuda.synchronize()
            self._warmup = (tokens, time.perf_counter() - begin)
            peaks.append(torch.cuda.max_memory_allocated(device) - trial - weights)
        both, most = peaks[0] + peaks[-1], max(peaks)
        peak = weights + (both if lanes.apart else most)
        torch.cuda.empty_cache()
        self._lap("trial")
        graphs = self._trial_graphs(loaded, lanes.main.staging, slots, pages, dtype)
        del executor, pages
        gc.collect()
        torch.cuda.empty_cache()
        found = memory.gpu_pages(c, page_bytes, device, weights, peak, graphs)
        self._facts.update(
            weights_bytes=found.weights, workspace_bytes=found.workspace, graph_bytes=graphs
        )
        return found.count

    def _trial_graphs(
        self,
        loaded: Loaded,
        staging: Staging,
        slots: Slots,
        pages: list[KVPages],
        dtype: torch.dtype,
    ) -> int:
        """Bytes that all captured passes will take: the largest measured, the others like a small
        one, which finds its working memory in the pool of the largest. The smallest of all may be
        one kernel, which takes next to nothing."""
        sizes = self._config.engine.graph_batch_sizes
        graphs = self._graphs(loaded, staging, slots, pages, dtype)
        prefills = self._prefill_graphs(loaded, staging, slots, pages, dtype)
        if graphs is None or prefills is None:
            return 0
        small = next((size for size in sizes if size > MAX_ROWS), sizes[0])
        before = torch.cuda.mem_get_info(self._device)[0]
        graphs.capture(sizes[-1])
        middle = torch.cuda.mem_get_info(self._device)[0]
        graphs.capture(small)
        after = torch.cuda.mem_get_info(self._device)[0]
        prefills.capture(prefills.largest)
        prefill = after - torch.cuda.mem_get_info(self._device)[0]
        each = max(1 << 20, middle - after)
        return (
            max(0, before - middle) + max(0, prefill) + each * (len(sizes) + len(PREFILL_SIZES) - 2)
        )
