"""resolve(config, spec, hardware) -> Plan: pure. Every `auto` answered once, with its reason.

Each answer is computed from the inputs, never from another answer's side effect. The GPU class
numbers are those that the field has converged on; profiles override them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from appliance.errors import HardwareError, UsageError
from appliance.hardware import HardwareSnapshot
from appliance.runtime.config import RuntimeConfig
from appliance.runtime.spec import ModelSpec

MIB = 1 << 20
SMALL_MODEL = 50_000_000
"""Parameters below which one CPU thread computes a decode step faster than several."""


class Answer(Struct, frozen=True):
    """One value of the plan. source: default, profile, flag, environment, file or rule."""

    field: str
    value: Any
    source: str
    reason: str = ""


class Plan(Struct, frozen=True):
    """config: no `auto` left in it. answers: one for each field of each section."""

    config: RuntimeConfig
    answers: tuple[Answer, ...]


SHARED_BYTES = 4 << 30
"""What a decode step must not have to read to be worth running eager, by its shared pages."""
PREFILL_GRAPH = 1024
"""Tokens of the largest captured prefill."""
BESIDE_ROWS = 64
"""Decode rows whose steps are long enough for a prefill to run beside them."""
_WHERE_IT_CAN = (
    "engine.graphs", "engine.few_rows", "engine.even_decode", "engine.skinny",
    "engine.fuse_rounding", "engine.compile",
)  # fmt: skip
"""Switches that are on where they can be; asked for too, what cannot be is not."""


class GpuClass(NamedTuple):
    below_mib: int
    chunk: int
    graph_rows: int
    max_running: int


GPU_CLASSES = (
    GpuClass(20480, 2048, 32, 128),
    GpuClass(35840, 4096, 64, 256),
    GpuClass(61440, 4096, 128, 256),
    GpuClass(92160, 8192, 2048, 2048),
    GpuClass(163840, 8192, 2048, 2048),
    GpuClass(1 << 40, 16384, 2048, 2048),
)


def gpu_class(memory_bytes: int) -> GpuClass:
    return next(c for c in GPU_CLASSES if memory_bytes // MIB < c.below_mib)


GRAPH_ROWS = (
    1, 2, 4, 8, 12, *range(16, 65, 8), *range(80, 209, 16), 240, 256, 272, 304, 320, 368, 384, 432,
    512, 576, 640, 736, 768, 800, 928, 960, 1024, 1088, *range(1280, 1793, 128),
    *range(2048, 4097, 512),
)  # fmt: skip
"""Row counts whose matmuls are fast: by the four of a layer of the Llama-3.1-8B shape, timed on an
H100 in bfloat16, 448 rows take 440 us and 512 take 305, 832 take 623 and 928 take 559, so that the
next good size costs less than a near one that is bad. Below 256 rows sizes hardly differ. Few
sizes are worth something of their own: each captured pass takes a tenth of a second and 3 MB."""
BAD_IN_8_BITS = {432}
"""Of these, those that 8-bit weights are slow at: 416 rows take 210 us and 512 take 171."""


def graph_sizes(largest: int, eight_bit: bool = False) -> tuple[int, ...]:
    """Row counts at which decode is captured, up to `largest`. eight_bit: of the weights."""
    bad = BAD_IN_8_BITS if eight_bit else set()
    return tuple(sorted({s for s in GRAPH_ROWS if s < largest and s not in bad} | {largest}))


class _Rules:
    """The rules for one resolve call; each method answers one field and says why."""

    def __init__(self, config: RuntimeConfig, spec: ModelSpec, hardware: HardwareSnapshot) -> None:
        self.config, self.spec, self.hardware = config, spec, hardware
        self.cuda = self._device()[0] == "cuda"

    def _device(self) -> tuple[str, str]:
        asked, gpus = self.config.engine.device, self.hardware.gpus
        if asked == "cuda" and not gpus:
            raise HardwareError(
                "this profile needs a GPU and none can be seen"
                + (f": {self.hardware.problem}" if self.hardware.problem else "."),
                "Use `--profile cpu`, or run `appliance doctor` to see what is missing.",
            )
        if asked != "auto":
            return asked, ""
        if gpus:
            return "cuda", f"{len(gpus)} GPU(s) found"
        return "cpu", "no GPU found"

    def _smallest(self) -> int:
        gpus = self.hardware.gpus[: self.config.engine.tp * self.config.engine.replicas]
        return min(g.memory_total for g in gpus) if gpus else 0

    def answers(self) -> dict[str, tuple[Any, str]]:
        c = self.config
        spec, tp = self.spec, c.engine.tp
        if not _shared_out(spec, tp):
            sizes = tp_sizes(spec, len(self.hardware.gpus) or 8)
            raise UsageError(
                f"tp {tp} does not divide the model's {spec.attention.heads} query and "
                f"{spec.attention.kv_heads} key-value heads.",
                f"Use `--tp {sizes[-1]}`; what divides both: {', '.join(map(str, sizes))}.",
                code="APL-USE-016",
            )
        return {
            "model.dtype": self._dtype(),
            "model.quantization": self._quantization(),
            "model.kv_dtype": self._kv_dtype(),
            "model.context": self._context(),
            "serve.frontends": self._frontends(),
            "schedule.chunk": self._chunk(),
            "schedule.max_running": self._max_running(),
            "schedule.mixed_tokens": self._mixed_tokens(),
            "schedule.share_from": self._share_from(),
            "schedule.beside_rows": self._beside_rows(),
            "engine.device": self._device(),
            "engine.memory_fraction": self._memory_fraction(),
            "engine.attention": self._attention(),
            "engine.filter": self._filter(),
            "engine.graphs": self._graphs(),
            "engine.few_rows": self._few_rows(),
            "engine.even_decode": self._even_decode(),
            "engine.skinny": self._skinny(),
            "engine.fuse_rounding": self._fuse_rounding(),
            "engine.graph_batch_sizes": self._graph_sizes(),
            "engine.compile": self._compile(),
            "engine.threads": self._threads(),
        }

    def _quantization(self) -> tuple[str, str]:
        """The answer to auto; asked for, fp8 is made of a plain checkpoint as it is read."""
        asked, quant = self.config.model.quantization, self.spec.quant
        if asked == "none" and quant is not None:
            raise UsageError(
                f"the checkpoint is stored in {quant.kind}, so it cannot be served unquantized.",
                "Leave the quantization to be chosen, or pull the plain checkpoint.",
                code="APL-USE-016",
            )
        oldest = min((g.sm for g in self.hardware.gpus), default=90)
        if (asked == "fp8" or quant is not None) and self.cuda and oldest < 89:
            raise HardwareError(
                f"8-bit float needs compute capability 8.9; this GPU has {oldest / 10}.",
                "Serve the plain checkpoint, or use an L4, L40S, RTX 4090, H100 or newer.",
            )
        if quant is not None:
            return "fp8", f"the checkpoint is stored in {quant.kind}"
        return "none", "checkpoint is served as it is stored"

    def _kv_dtype(self) -> tuple[str, str]:
        """Keys and values of 8 bits are asked for, never chosen: they change what is said."""
        asked = self.config.model.kv_dtype
        oldest = min((g.sm for g in self.hardware.gpus), default=90)
        needed = 89 if asked == "e4m3" else 80
        if asked in ("e4m3", "e5m2") and self.cuda and oldest < needed:
            raise HardwareError(
                f"keys and values in {asked} need compute capability {needed / 10}; this GPU has "
                f"{oldest / 10}.",
                "Use `--set model.kv_dtype=model`.",
            )
        if self.spec.kv_scales:
            return "model", (
                "as the model computes; the checkpoint is calibrated for 8 bits: "
                "model.kv_dtype=e4m3 holds twice the tokens"
            )
        return "model", "as the model computes"

    def _dtype(self) -> tuple[str, str]:
        if not self.cuda:
            return "float32", "CPUs compute float32 fastest and exactly"
        oldest = min((g.sm for g in self.hardware.gpus), default=90)
        if self.spec.dtype == "bfloat16" and oldest < 80:
            return "float16", f"compute capability {oldest / 10} has no bfloat16"
        if self.spec.dtype == "float32":
            return "bfloat16", "float32 checkpoint, half the memory and the same range"
        return self.spec.dtype, "as the checkpoint is stored"

    def _context(self) -> tuple[int, str]:
        return self.spec.max_context, "all that the model was trained for"

    def _frontends(self) -> tuple[int, str]:
        n = max(1, min(8, self.hardware.cores // 4))
        return n, f"{self.hardware.cores} cores"

    def _chunk(self) -> tuple[int, str]:
        if not self.cuda:
            return 2048, "CPU: keeps one step under about a second"
        chosen = gpu_class(self._smallest())
        return chosen.chunk, f"GPU of {self._smallest() // MIB} MiB"

    def _max_running(self) -> tuple[int, str]:
        if not self.cuda:
            return 64, "CPU"
        chosen = gpu_class(self._smallest())
        return chosen.max_running, f"GPU of {self._smallest() // MIB} MiB"

    def _memory_fraction(self) -> tuple[float, str]:
        if not self.cuda:
            return 0.5, "half of the free memory, the rest is the machine's"
        return 0.94, "workspace and graphs are measured before the pool is sized"

    def _attention(self) -> tuple[str, str]:
        asked = self.config.engine.attention
        wide = self.config.model.dtype == "float32"
        if asked == "flashinfer" and (wide or not self.cuda):
            raise UsageError(
                "FlashInfer's attention runs on NVIDIA GPUs, and not in float32.",
                "Leave engine.attention to be chosen.",
                code="APL-USE-016",
            )
        if asked != "auto":
            return asked, ""
        if self.cuda and wide:
            return "reference", "float32 is computed by plain torch"
        if self.cuda:
            return "flashinfer", "NVIDIA GPU"
        return "reference", "plain torch runs on any device"

    def _filter(self) -> tuple[str, str]:
        wide = self.config.model.dtype == "float32"
        if self.config.engine.filter == "search" and (wide or not self.cuda):
            raise UsageError(
                "tokens are searched for without sorting on NVIDIA GPUs, and not in float32.",
                "Leave engine.filter to be chosen.",
                code="APL-USE-016",
            )
        if not self.cuda:
            return "sort", "CPUs sort"
        if wide:
            return "sort", "float32 is computed by plain torch"
        return "search", "NVIDIA GPU: two passes over the logits where sorting takes many"

    def _graphs(self) -> tuple[bool, str]:
        if not self.cuda:
            return False, "no GPU"
        if self._attention()[0] == "reference":
            return False, "plain torch is not captured"
        return self.config.engine.graphs, ""

    def _mixed_tokens(self) -> tuple[int, str]:
        if not self._graphs()[0]:
            return 1, "no graphs: a mixed pass would wait for its launches"
        return PREFILL_GRAPH, "as many as a captured prefill takes"

    def _share_from(self) -> tuple[int, str]:
        if not self.cuda or self._attention()[0] == "reference":
            return 0, "plain torch reads every row's own pages"
        a, c = self.spec.attention, self.config
        values = 2 * self.spec.layers * max(1, a.kv_heads // c.engine.tp) * a.head_dim
        page = 2 * values * c.schedule.page_size
        return -(-SHARED_BYTES // page), f"{SHARED_BYTES >> 30} GiB not read outweigh the launches"

    def _beside_rows(self) -> tuple[int, str]:
        c = self.config
        if not self._graphs()[0]:
            return 0, "no graphs"
        if c.engine.tp > 1:
            return 0, "the model is shared by several GPUs"
        if min(g.sm for g in self.hardware.gpus) < 90 or c.model.kv_dtype in ("e4m3", "e5m2"):
            return 0, "for GPUs of class 9.0 and later, and pages of 16 bits"
        if not self._even_decode()[0] or any(self.spec.attention.windows(self.spec.layers)):
            return 0, "FlashInfer's kernels take turns"
        return BESIDE_ROWS, "arithmetic and reading at the same time"

    def _fuse_rounding(self) -> tuple[bool, str]:
        asked = self.config.model.quantization
        if (self._quantization()[0] if asked == "auto" else asked) != "fp8":
            return False, "no linear takes 8 bits"
        return self.config.engine.fuse_rounding, "one kernel less before most linears"

    def _few_rows(self) -> tuple[bool, str]:
        c = self.config
        if not self._graphs()[0]:
            return False, "no graphs"
        if min(g.sm for g in self.hardware.gpus) < 90:
            return False, "it is there for GPUs of class 9.0 and later"
        if c.engine.tp > 1:
            return False, "the model is shared by several GPUs"
        dtype = self._dtype()[0] if c.model.dtype == "auto" else c.model.dtype
        if dtype != "bfloat16" or c.model.kv_dtype in ("e4m3", "e5m2"):
            return False, "it knows values and pages of bfloat16"
        if self.spec.attention.head_dim != 128:
            return False, f"it knows heads of 128, not of {self.spec.attention.head_dim}"
        return c.engine.few_rows, "one kernel for so few reads weights without a pause"

    def _even_decode(self) -> tuple[bool, str]:
        c, a = self.config, self.spec.attention
        if not self.cuda or self._attention()[0] != "flashinfer":
            return False, "no pages on a GPU of NVIDIA's"
        if min(g.sm for g in self.hardware.gpus) < (89 if c.model.kv_dtype == "e4m3" else 80):
            return False, "the GPU is too old for it"
        dtype = self._dtype()[0] if c.model.dtype == "auto" else c.model.dtype
        if dtype not in ("bfloat16", "float16") or c.model.kv_dtype == "e5m2":
            return False, "it knows values of 16 bits, and pages of these or of e4m3"
        if a.head_dim not in (64, 128) or a.heads > 8 * a.kv_heads:
            return False, "it knows heads of 64 and 128, up to 8 to a key-value head"
        return c.engine.even_decode, "pages are read at copy speed whatever the rows' lengths"

    def _skinny(self) -> tuple[bool, str]:
        c = self.config
        if not self._graphs()[0]:
            return False, "no graphs"
        if any(g.sm // 10 != 9 for g in self.hardware.gpus):
            return False, "it is there for GPUs of class 9.0"
        dtype = self._dtype()[0] if c.model.dtype == "auto" else c.model.dtype
        if dtype not in ("bfloat16", "float16"):
            return False, "it knows values of 16 bits, and 8-bit floats"
        return c.engine.skinny, "weights are read at copy speed by up to 64 rows"

    def _compile(self) -> tuple[bool, str]:
        c = self.config
        if self.cuda and c.model.dtype != "float32" and c.engine.filter != "sort":
            return False, "all that it would compile has kernels here"
        return c.engine.compile, "a first start takes some 25 s longer for it, and it wins little"

    def _graph_sizes(self) -> tuple[tuple[int, ...], str]:
        if not self._graphs()[0]:
            return (), "no graphs"
        rows = gpu_class(self._smallest()).graph_rows
        if self.config.schedule.max_running:
            rows = min(rows, self.config.schedule.max_running)
        asked = self.config.model.quantization
        weights = self._quantization()[0] if asked == "auto" else asked
        return graph_sizes(rows, weights == "fp8"), f"up to {rows} rows"

    def _threads(self) -> tuple[int, str]:
        ranks = self.config.engine.tp * self.config.engine.replicas
        n = max(1, self.hardware.cores // ranks)
        if self.cuda:
            return max(1, min(4, n)), "the GPU does the arithmetic"
        if self.spec.parameters() < SMALL_MODEL:
            return 1, "a model this small spends more on waking threads than they save"
        return n, f"{self.hardware.cores} cores for {ranks} rank(s)"


def resolve(
    config: RuntimeConfig,
    spec: ModelSpec,
    hardware: HardwareSnapshot,
    sources: dict[str, str] | None = None,
) -> Plan:
    """Answers every `auto` of `config`.

    sources: dotted field -> who set it (flag, profile NAME, …); fields not in it are defaults.
    Raises UsageError or HardwareError when a value cannot be had on this machine.
    """
    rules = _Rules(config, spec, hardware).answers()
    parts = {
        "model": config.model,
        "serve": config.serve,
        "schedule": config.schedule,
        "engine": config.engine,
    }
    sections: dict[str, Any] = {}
    answers: list[Answer] = []
    for section, part in parts.items():
        changed: dict[str, Any] = {}
        for name, value in msgspec.structs.asdict(part).items():
            field = f"{section}.{name}"
            set_by = (sources or {}).get(field, "")
            open_ = value in ("auto", 0, ())
            if field in _WHERE_IT_CAN and value:
                open_ = not set_by or not rules[field][0]
            if field in rules and open_:
                value, reason = rules[field]
                changed[name] = value
                answers.append(Answer(field, value, "rule", reason))
            else:
                answers.append(Answer(field, value, set_by or "default"))
        sections[section] = msgspec.structs.replace(part, **changed)
    known = spec.max_context
    if config.model.context > known:
        raise UsageError(
            f"a context of {config.model.context} is longer than the model's {known}.",
            f"Ask for at most {known}, or leave it to be chosen.",
            code="APL-USE-016",
        )
    return Plan(msgspec.structs.replace(config, **sections), tuple(answers))


def tp_sizes(spec: ModelSpec, most: int) -> list[int]:
    """Tensor-parallel sizes up to `most` that the model's heads can be shared out over."""
    return [tp for tp in (1, 2, 4, 8) if tp <= most and _shared_out(spec, tp)]


def _shared_out(spec: ModelSpec, tp: int) -> bool:
    heads, kv_heads = spec.attention.heads, spec.attention.kv_heads
    return heads % tp == 0 and (kv_heads % tp == 0 or tp % kv_heads == 0)
