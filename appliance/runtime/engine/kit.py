"""Kit: what a rank has once its model is loaded; executors and captured passes are made of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, cast

import torch

from appliance.kernels.ops import CaptureOps
from appliance.runtime.config import RuntimeConfig
from appliance.runtime.engine.captures import Later
from appliance.runtime.engine.executor import DeviceExecutor
from appliance.runtime.engine.forward import Forward
from appliance.runtime.engine.graphs import DecodeGraphs, SmallPass
from appliance.runtime.engine.kv import pool
from appliance.runtime.engine.lanes import Lanes
from appliance.runtime.engine.load import DTYPES, Loaded, kv_dtype
from appliance.runtime.engine.prefill_graphs import PrefillGraphs
from appliance.runtime.engine.sample.state import SamplingState
from appliance.runtime.engine.slots import Slots
from appliance.runtime.model.batch import KVPages
from appliance.runtime.model.few_rows import FewRows, best_up_to, why_not
from appliance.runtime.model.parallel.comm import Comm
from appliance.runtime.model.parallel.mesh import Mesh
from appliance.runtime.spec import ModelSpec

PREFILL_SIZES = (*range(32, 257, 32), *range(320, 513, 64), *range(640, 1025, 128))
"""Token counts at which a prefill is captured; past them launches hide behind arithmetic."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kit:
    """facts: what is told of the rank. Pages are not in it: those of a trial are not those that
    are served from."""

    config: RuntimeConfig
    spec: ModelSpec
    mesh: Mesh
    comm: Comm
    device: torch.device
    loaded: Loaded
    lanes: Lanes
    slots: Slots
    state: SamplingState
    facts: dict[str, Any]

    def pages(self, count: int) -> list[KVPages]:
        size = self.config.schedule.page_size
        return pool.allocate(self.spec, self.mesh, size, count, kv_dtype(self.config), self.device)

    def executor(
        self,
        pages: list[KVPages],
        graphs: DecodeGraphs | None = None,
        prefill_graphs: PrefillGraphs | None = None,
    ) -> DeviceExecutor:
        size = self.config.schedule.page_size
        # equals in this order: a prefill that is padded pays more for it
        captures = [g.captures for g in (prefill_graphs, graphs) if g is not None]
        return DeviceExecutor(
            Forward(self.loaded.model, self.slots, pages, size, graphs, prefill_graphs),
            self.loaded.model.logits,
            self.slots,
            self.state,
            self.loaded.ops,
            self.lanes,
            self.comm,
            leads=self.mesh.rank == 0,
            later=Later(captures, self.facts),
        )

    def graphs(self, pages: list[KVPages]) -> DecodeGraphs | None:
        """None where nothing is captured; the same of `prefill_graphs`."""
        e = self.config.engine
        if self.device.type != "cuda" or not e.graphs or not e.graph_batch_sizes:
            return None
        return DecodeGraphs(
            self.loaded.model,
            self.loaded.backend,
            cast(CaptureOps, self.loaded.ops),
            self.slots,
            pages,
            self.config.schedule.page_size,
            self.spec.hidden,
            DTYPES[self.config.model.dtype],
            e.graph_batch_sizes,
            self.lanes.main.staging,
            self.few_rows(pages),
            self._few_most(),
        )

    def _few_most(self) -> int:
        turns = self.loaded.backend.turns_rows if self.config.engine.skinny else 0
        return best_up_to(self.loaded.model, turns)

    def prefill_graphs(self, pages: list[KVPages]) -> PrefillGraphs | None:
        e = self.config.engine
        sizes = tuple(s for s in PREFILL_SIZES if s <= self.config.model.context)
        if self.device.type != "cuda" or not e.graphs or not e.graph_batch_sizes or not sizes:
            return None
        return PrefillGraphs(
            self.loaded.model,
            self.loaded.backend,
            self.slots,
            pages,
            self.config.schedule.page_size,
            self.spec.hidden,
            DTYPES[self.config.model.dtype],
            sizes,
            self.lanes.main.staging,
        )

    def few_rows(self, pages: list[KVPages]) -> SmallPass | None:
        """The plan has looked at GPU and model; what only the loaded model or this machine's
        libraries tell makes the passes run as all others do, and is said."""
        if not self.config.engine.few_rows:
            return None
        size = self.config.schedule.page_size
        reason = why_not(self.loaded.model, self.spec, self.mesh.tp, pages, size)
        try:
            return None if reason else FewRows(self.loaded.model, self.spec, pages, size)
        except RuntimeError as e:
            reason = str(e)
        finally:
            if reason:
                self.facts["few_rows"] = reason
                log.warning("no kernel of its own for few rows: %s", reason)
        return None
