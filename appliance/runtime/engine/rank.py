"""Builds one rank's Executor from the config, and follows the ring on ranks other than 0."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from appliance.errors import HardwareError
from appliance.kernels.multiprocessors import Room, spared
from appliance.runtime.config import RuntimeConfig
from appliance.runtime.engine import memory, trial
from appliance.runtime.engine.executor import DeviceExecutor, StepFlight
from appliance.runtime.engine.inputs import Staging, Stopwatch
from appliance.runtime.engine.kit import Kit
from appliance.runtime.engine.kv import pool
from appliance.runtime.engine.lanes import Lanes
from appliance.runtime.engine.load import Loaded, kv_dtype, load_model
from appliance.runtime.engine.plain import NotCompiledError, first_line, in_plain_torch
from appliance.runtime.engine.sample.state import SamplingState
from appliance.runtime.engine.slots import Slots
from appliance.runtime.engine.trial import Found, Tell
from appliance.runtime.model.parallel.comm import Comm, connect
from appliance.runtime.model.parallel.mesh import Mesh
from appliance.runtime.spec import ModelSpec
from appliance.runtime.wire.codec import decode_step, encode
from appliance.runtime.wire.ring import RingReader, RingWriter
from appliance.runtime.wire.step import Step

log = logging.getLogger(__name__)


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

    def chore(self, busy: bool) -> None:
        """None: a captured pass has collectives in it, so its ranks would have to capture it at the
        same place among their steps. All are captured before they serve."""


def follow(executor: DeviceExecutor, ring: RingReader, beat: Callable[[int], None]) -> None:
    """Ranks 1 … n-1: every step of the ring, until the process is ended."""
    done = 0
    while True:
        data = ring.read(timeout=0.5)
        if data is not None:
            executor.follow(decode_step(data))
            done += 1
        beat(done)


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
        self._clock = time.perf_counter()

    def _open_device(self, index: int) -> torch.device:
        torch.set_num_threads(max(1, self._config.engine.threads))
        if self._config.engine.device != "cuda":
            memory.keep_freed()
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
        c = self._config
        self._tell("load", 0.0, "")
        try:
            loaded = load_model(
                c, self._spec, self._mesh, self._comm, self._device,
                lambda p: self._tell("load", p, ""), "plain" in self._facts,
            )  # fmt: skip
        except ImportError as e:
            raise NotCompiledError(first_line(e)) from None
        self._lap("load")
        span = record_function if c.engine.profile_steps else None
        kit = self._kit(loaded, self._lanes(loaded, Stopwatch(span)))
        if loaded.compiled is not None:
            trial.compile_chains(kit, self._tell)
            self._lap("compile_chains")
        if c.engine.attention != "reference":
            trial.compile_kernels(kit, self._tell)
            self._lap("compile")
        self._tell("plan", 0.0, "")
        count, warmup = self._room_for_pages(kit)
        pages = kit.pages(count)
        self._lap("plan")
        # what a trace shows should be as it will be
        whole = c.engine.tp > 1 or c.engine.profile_steps > 0 or not c.engine.ready_early
        graphs = kit.graphs(pages)
        if graphs is not None:
            graphs.captures.capture_first(lambda p: self._tell("capture", p, ""), whole)
            self._lap("capture")
        prefills = kit.prefill_graphs(pages)
        if prefills is not None:
            prefills.captures.capture_first(lambda p: self._tell("capture", p, "prefill"), whole)
            self._lap("capture_prefill")
        executor = kit.executor(pages, graphs, prefills)
        if self._device.type == "cuda":
            trial.fill_caches(kit, executor, count)
            self._lap("fill")
        else:
            tokens = min(trial.CPU_TOKENS, count * c.schedule.page_size, c.model.context)
            warmup = trial.first_steps(kit, executor, tokens)
        gc.collect()
        gc.freeze()  # what is built now lives as long as the process; collections skip it
        return Built(executor, count, self._facts, warmup)

    def _kit(self, loaded: Loaded, lanes: Lanes) -> Kit:
        c = self._config
        return Kit(
            config=c,
            spec=self._spec,
            mesh=self._mesh,
            comm=self._comm,
            device=self._device,
            loaded=loaded,
            lanes=lanes,
            slots=Slots(c.schedule.max_running, loaded.columns, loaded.ops, self._device),
            state=SamplingState(c.schedule.max_running, self._spec.vocab, self._device),
            facts=self._facts,
        )

    def _room_for_pages(self, kit: Kit) -> Found:
        """The same number on every rank."""
        c, size = self._config, self._config.schedule.page_size
        page_bytes = pool.page_bytes(self._spec, self._mesh, size, kv_dtype(c))
        if self._device.type == "cuda":
            count, warmup = trial.measure(kit, page_bytes, self._lap)
        else:
            count, warmup = memory.cpu_pages(c, page_bytes), (0, 0.0)
        if c.engine.max_total_tokens:
            count = min(count, max(1, c.engine.max_total_tokens // size))
        count = self._comm.smallest(count)
        self._facts.update(pages=count, page_size=size, kv_bytes=count * page_bytes)
        return Found(count, warmup)

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
