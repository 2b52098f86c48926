"""ModelSpec: a model's shape as plain data. No torch, no file access, no names of models.

A family's `spec.py` makes one from config.json; layers, planner and memory fit read it.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]


class RopeSpec(Struct, frozen=True):
    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int = 0
    """Context the model was trained at, where `kind` needs it."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    """yarn's scale on cos and sin; 0: 0.1 ln(factor) + 1, or mscale / mscale_all_dim."""
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    """yarn: round the correction range to whole dimensions."""
    rotary_dim: int = 0
    """Leading dimensions of a head that turn; 0: all."""


class AttentionSpec(Struct, frozen=True):
    kind: Literal["gqa"]
    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeSpec
    window: int = 0
    """Keys each query sees, itself included; 0: all."""
    windowed_layers: tuple[int, ...] = ()
    """Layers the window holds for; empty with window > 0: all."""
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False

    def window_of(self, layer: int) -> int:
        """The window of one layer; 0 for none."""
        if self.window and (not self.windowed_layers or layer in self.windowed_layers):
            return self.window
        return 0

    def windows(self, layers: int) -> tuple[int, ...]:
        """The distinct windows of the first `layers` layers."""
        return tuple(sorted({self.window_of(i) for i in range(layers)}))


class QuantSpec(Struct, frozen=True):
    """How the checkpoint's linears are stored.

    kind: fp8-rows: e4m3 with one scale for each output row, or one for all of them; fp8-blocks: one
    for each `block` of rows and columns.
    activation: token: scales are found as tokens come; tensor: the checkpoint holds one for all.
    ignored: names of linears left in the model's dtype; `re:` begins a pattern.
    activation_cap: largest magnitude a token's scale is made for; 0: none.
    scale_suffix: what the scale's name ends in.
    """

    kind: Literal["fp8-rows", "fp8-blocks"]
    activation: Literal["token", "tensor"] = "token"
    ignored: tuple[str, ...] = ()
    block: tuple[int, int] = (128, 128)
    activation_cap: float = 0.0
    scale_suffix: str = "weight_scale"


class ModelSpec(Struct, frozen=True):
    architecture: str
    family: str
    """Folder under runtime/model/families."""
    hidden: int
    layers: int
    intermediate: int
    vocab: int
    attention: AttentionSpec
    norm_eps: float
    max_context: int
    tied_embeddings: bool = False
    mlp_bias: bool = False
    dtype: str = "bfloat16"
    """dtype of the checkpoint."""
    bos_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()
    quant: QuantSpec | None = None
    kv_scales: bool = False
    """The checkpoint was calibrated for keys and values of 8 bits."""
    pooling: Literal["", "last", "mean", "first"] = ""
    """How the model makes embeddings of the hidden states; empty: it is not made for them."""
    normalizes: bool = True
    """Embeddings have length one."""
    labels: tuple[str, ...] = ()
    """The classes of a model whose head tells these instead of tokens."""
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    """What makes the scores of the classes probabilities; none: they are no such thing."""
    headless: bool = False
    """The checkpoint has no head at all."""

    def kv_bytes_per_token(self, dtype_bytes: int = 2, tp: int = 1) -> int:
        """Bytes of K and V one token takes on one of `tp` ranks."""
        a = self.attention
        heads = max(1, a.kv_heads // tp)
        return 2 * self.layers * heads * a.head_dim * dtype_bytes

    def parameters(self) -> int:
        """Number of weights, embeddings counted once when tied."""
        a, h = self.attention, self.hidden
        q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
        block = h * (q + 2 * kv) + q * h + 3 * h * self.intermediate + 2 * h
        block += (q + 2 * kv) * a.qkv_bias + h * a.out_bias + 2 * a.head_dim * a.qk_norm
        own_head = not (self.tied_embeddings or self.labels or self.headless)
        tables = (1 + own_head) * self.vocab + len(self.labels)
        return self.layers * block + tables * h + h
