"""What a model's parts take of a GPU or a host, from its shape and a resolved config alone.

The constants follow what engines have reported after load (docs/measurements.md, tests hold the
arithmetic to the records); the engine itself measures before it sizes its pool.
"""

from __future__ import annotations

from msgspec import Struct

from appliance.runtime.config import RuntimeConfig
from appliance.runtime.spec import ModelSpec

MIB = 1 << 20
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CUDA_CONTEXT = 720 * MIB
"""A process's context and libraries on a GPU, which torch's allocator does not see."""
ATTENTION_BUFFERS = 400 * MIB
"""Partial results and plans of FlashInfer; counted by the engine among the weights."""
SLACK = 512 * MIB
"""Kept free by the engine for fragmentation and late allocations."""
COLLECTIVES = 256 * MIB
"""NCCL's channels on one rank of several."""
PASS_PER_LAYER = MIB * 3 // 32
"""What a captured pass keeps for itself: its nodes. Its tensors lie in a pool that all share."""
PREFILL_PASSES, PREFILL_MOST = 16, 1024
"""Captured prefills, and tokens of the largest."""
SAMPLED_ROWS = 512
"""Rows whose logits are in float32 at a time."""
PENALIZED_ROWS = 512
"""Rows with penalties at a time; each has a number of 16 bits for every token."""
FILTER_ROWS = 128
FILTER_BYTES = 38
"""Rows that top-k, top-p and min-p sort at a time, and what each of their logits takes then."""
SEARCH_BYTES = 17 << 13
"""Of one row where they search: copies of 16,384 values with their places, and its bins."""


class Footprint(Struct, frozen=True):
    """Bytes of one rank. weights: parameters and the tables that stay beside them."""

    weights: int
    activations: int
    graphs: int

    @property
    def workspace(self) -> int:
        return self.activations + self.graphs


def parameter_bytes(spec: ModelSpec, dtype: str, tp: int, quantization: str = "none") -> int:
    """Bytes of one rank's parameters; in 8 bits all but the embeddings and the head.

    Norms and such, which every rank holds whole, are counted as shared out, and scales are not
    counted: both are below a thousandth.
    """
    size = DTYPE_BYTES[dtype]
    total = spec.parameters()
    if spec.quant is None and quantization != "fp8":
        return total * size // tp
    embeddings = (1 if spec.tied_embeddings else 2) * spec.vocab * spec.hidden
    return ((total - embeddings) + embeddings * size) // tp


def kv_token_bytes(spec: ModelSpec, config: RuntimeConfig) -> int:
    """Bytes of the keys and values of one token on one rank. config: resolved."""
    narrow = config.model.kv_dtype in ("e4m3", "e5m2")
    size = 1 if narrow else DTYPE_BYTES[config.model.dtype]
    return spec.kv_bytes_per_token(size, config.engine.tp)


def footprint(spec: ModelSpec, config: RuntimeConfig) -> Footprint:
    """config: resolved (no `auto` left)."""
    tp, dtype = config.engine.tp, config.model.dtype
    weights = parameter_bytes(spec, dtype, tp, config.model.quantization)
    parts = _prefill(spec, config), _sampling(spec, config)
    steps = sum(parts) if config.schedule.beside_rows else max(parts)
    if config.engine.device != "cuda":
        return Footprint(weights, steps, 0)
    weights += _tables(spec, config)
    if config.engine.attention == "flashinfer":
        weights += ATTENTION_BUFFERS
    more = SLACK + (COLLECTIVES if tp > 1 else 0)
    return Footprint(weights, steps + more, _graphs(spec, config))


def _prefill(spec: ModelSpec, config: RuntimeConfig) -> int:
    return max(config.schedule.chunk, 1) * _token_bytes(spec, config)


def _token_bytes(spec: ModelSpec, config: RuntimeConfig) -> int:
    """Of a token in a pass: hidden states, queries and the gated halves of the MLP; in 8 bits, what
    goes into a linear once more."""
    a, tp = spec.attention, config.engine.tp
    width = 4 * spec.hidden + 2 * a.heads * a.head_dim // tp + 3 * spec.intermediate // tp
    rounded = spec.intermediate // tp if config.model.quantization == "fp8" else 0
    return width * DTYPE_BYTES[config.model.dtype] + rounded


def _sampling(spec: ModelSpec, config: RuntimeConfig) -> int:
    """Logits as computed; of some rows at a time in float32 and divided by the temperature; and
    what filters need."""
    rows, size = config.schedule.max_running, DTYPE_BYTES[config.model.dtype]
    some, wide = min(rows, SAMPLED_ROWS), 4 + (4 if size < 4 else 0)
    logits = spec.vocab * (rows * size + some * wide)
    if config.engine.filter == "search":
        return logits + some * SEARCH_BYTES
    return logits + min(rows, FILTER_ROWS) * spec.vocab * FILTER_BYTES


def _tables(spec: ModelSpec, config: RuntimeConfig) -> int:
    """The page table of all slots, cosines and sines of every position, and what has been written
    by rows with penalties."""
    context = config.model.context or spec.max_context
    columns = -(-context // config.schedule.page_size)
    turned = spec.attention.rope.rotary_dim or spec.attention.head_dim
    penalties = min(config.schedule.max_running, PENALIZED_ROWS) * spec.vocab * 2
    return (config.schedule.max_running + 1) * columns * 4 + context * turned * 4 + penalties


def _graphs(spec: ModelSpec, config: RuntimeConfig) -> int:
    """Decode passes share the tensors of their largest, prefills those of theirs."""
    sizes = config.engine.graph_batch_sizes if config.engine.graphs else ()
    if not sizes:
        return 0
    shared = (max(sizes) + PREFILL_MOST) * _token_bytes(spec, config)
    return shared + (len(sizes) + PREFILL_PASSES) * max(MIB, PASS_PER_LAYER * spec.layers)
