"""Spec and config -> model with weights on this rank's device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from appliance.errors import HardwareError
from appliance.kernels.chains import PLAIN
from appliance.kernels.compiled import CompiledChains, lacking
from appliance.kernels.ops import Ops, chains_of
from appliance.kernels.ops import select as select_ops
from appliance.kernels.torch_ops import TorchOps
from appliance.runtime.config import RuntimeConfig
from appliance.runtime.model import weights
from appliance.runtime.model.attention.backend import Backend
from appliance.runtime.model.attention.select import Wanted, select
from appliance.runtime.model.build import Build
from appliance.runtime.model.decoder import Decoder
from appliance.runtime.model.parallel.comm import Comm
from appliance.runtime.model.parallel.mesh import Mesh
from appliance.runtime.model.registry import model_class
from appliance.runtime.spec import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def kv_dtype(config: RuntimeConfig) -> torch.dtype:
    """Of the pages."""
    return KV_DTYPES.get(config.model.kv_dtype) or DTYPES[config.model.dtype]


@dataclass(frozen=True, slots=True)
class Loaded:
    model: Decoder
    backend: Backend
    ops: Ops
    columns: int
    """Pages of the longest sequence."""
    compiled: CompiledChains | None = None
    """What is to be compiled before the first step."""


def load_model(
    config: RuntimeConfig,
    spec: ModelSpec,
    mesh: Mesh,
    comm: Comm,
    device: torch.device,
    progress: Callable[[float], None],
    plain: bool = False,
) -> Loaded:
    """plain: computed by torch alone. Errors as in weights.load, attention.select and _compiled."""
    dtype = DTYPES[config.model.dtype]
    compiled = _compiled(config, mesh, device, plain)
    chains = compiled.chains if compiled is not None else PLAIN
    search = config.engine.filter == "search"
    ops: Ops
    if plain:
        ops = TorchOps(chains)
    else:
        ops = select_ops(device, dtype, search, chains, config.engine.skinny)
    size = config.schedule.page_size
    columns = -(-config.model.context // size)
    backend = select(
        config.engine.attention,
        Wanted(
            spec=spec.attention,
            layers=spec.layers,
            mesh=mesh,
            ops=ops,
            device=device,
            dtype=dtype,
            kv_dtype=kv_dtype(config),
            page_size=size,
            rows=config.schedule.max_running,
            graph_rows=max(config.engine.graph_batch_sizes, default=1),
            columns=columns,
            even_decode=config.engine.even_decode,
        ),
    )
    build = Build(
        mesh=mesh,
        comm=comm,
        dtype=dtype,
        device=device,
        ops=ops,
        attention=backend,
        context=config.model.context,
        fuse_rounding=config.engine.fuse_rounding,
        narrow_kv=config.model.kv_dtype in KV_DTYPES,
        quantization=config.model.quantization,
        quant=spec.quant,
    )
    model: Decoder = model_class(spec)(spec, build).eval()
    if config.model.load_format == "dummy":
        weights.fill(model, config.engine.seed)
        progress(1.0)
    else:
        weights.load(model, build, Path(config.model.path), progress)
    return Loaded(model, backend, ops, columns, compiled)


def _compiled(
    config: RuntimeConfig, mesh: Mesh, device: torch.device, plain: bool
) -> CompiledChains | None:
    """Of the rank that chooses tokens; None where nothing is left to compile. HardwareError where
    there is no compiler."""
    dtype = torch.float32 if plain else DTYPES[config.model.dtype]
    chains = chains_of(device, dtype, config.engine.filter == "search")
    if not config.engine.compile or mesh.rank != 0 or not chains:
        return None
    missing = lacking(device)
    if missing:
        raise not_compiled(f"no {missing} is found", missing)
    return CompiledChains(chains)


def not_compiled(why: str, compiler: str) -> HardwareError:
    return HardwareError(
        f"engine.compile is on, and torch.compile cannot compile here: {why}.",
        f"Install {compiler} (`apt install {compiler}`), or leave out engine.compile.",
        code="APL-HW-008",
    )
