"""The pre-norm decoder all families share."""

from __future__ import annotations

from torch import Tensor, nn

from appliance.runtime.model.batch import Batch, KVPages
from appliance.runtime.model.build import Build
from appliance.runtime.model.layers.attention import Attention
from appliance.runtime.model.layers.embedding import VocabTable
from appliance.runtime.model.layers.heads import ClassHead, NoHead
from appliance.runtime.model.layers.linear import ColumnLinear
from appliance.runtime.model.layers.mlp import GatedMLP
from appliance.runtime.model.layers.norm import RMSNorm
from appliance.runtime.model.layers.rope import cos_sin_table
from appliance.runtime.spec import ModelSpec


class Layer(nn.Module):
    def __init__(
        self, spec: ModelSpec, build: Build, name: str, index: int, cos_sin: Tensor
    ) -> None:
        super().__init__()
        self.attention = Attention(spec, build, f"{name}.self_attn", index, cos_sin)
        self.mlp = GatedMLP(build, f"{name}.mlp", spec.hidden, spec.intermediate, spec.mlp_bias)

        def norm(word: str, behind: ColumnLinear) -> RMSNorm:
            how = build.rounding(behind.weight)
            return RMSNorm(build, f"{name}.{word}", spec.hidden, spec.norm_eps, how)

        self.attention_norm = norm("input_layernorm", self.attention.qkv)
        self.mlp_norm = norm("post_attention_layernorm", self.mlp.gate_up)

    def forward(
        self, x_TE: Tensor, residual_TE: Tensor | None, batch: Batch, pages: KVPages
    ) -> tuple[Tensor, Tensor]:
        if residual_TE is None:
            residual_TE = x_TE
            normed = self.attention_norm(x_TE)
        else:
            normed, residual_TE = self.attention_norm.add(x_TE, residual_TE)
        x_TE = self.attention(normed, batch, pages)
        normed, residual_TE = self.mlp_norm.add(x_TE, residual_TE)
        return self.mlp(normed), residual_TE


class Decoder(nn.Module):
    """ids -> hidden states -> logits. Weight names are those of the Llama checkpoint layout."""

    def __init__(self, spec: ModelSpec, build: Build) -> None:
        super().__init__()
        a = spec.attention
        self._backend = build.attention
        cos_sin = cos_sin_table(a.rope, a.head_dim, build.context).to(build.device)
        tied = spec.tied_embeddings and not (spec.labels or spec.headless)
        self.embedding = VocabTable(
            build,
            "model.embed_tokens",
            spec.vocab,
            spec.hidden,
            "both" if tied else "embed",
        )
        self.layers = nn.ModuleList(
            Layer(spec, build, f"model.layers.{i}", i, cos_sin) for i in range(spec.layers)
        )
        self.norm = RMSNorm(build, "model.norm", spec.hidden, spec.norm_eps)
        self.head: VocabTable | ClassHead | NoHead
        if spec.labels:
            self.head = ClassHead(build, "score", len(spec.labels), spec.hidden)
        elif spec.headless:
            self.head = NoHead()
        elif tied:
            self.head = self.embedding
            build.optional.add("lm_head.weight")
        else:
            self.head = VocabTable(build, "lm_head", spec.vocab, spec.hidden, "logits")
        for i in range(spec.layers):  # old checkpoints store what is computed from the config
            build.optional.add(f"model.layers.{i}.self_attn.rotary_emb.inv_freq")

    def forward(self, batch: Batch, pages: list[KVPages]) -> Tensor:
        """Hidden states after the last norm: [T, hidden]. K and V are written to `pages`."""
        self._backend.plan(batch)
        x_TE = self.embedding.embed(batch.ids)
        residual_TE: Tensor | None = None
        for layer, own in zip(self.layers, pages, strict=True):
            x_TE, residual_TE = layer(x_TE, residual_TE, batch, own)
        assert residual_TE is not None
        normed, _ = self.norm.add(x_TE, residual_TE)
        assert isinstance(normed, Tensor)  # no linear of 8 bits follows
        return normed

    def logits(self, x_SE: Tensor) -> Tensor:
        """[S, hidden] -> [S, vocab] in the model's dtype; of a classifier [S, classes]."""
        return self.head.logits(x_SE)
