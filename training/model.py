"""The Llama shape in plain torch, for training; parameters carry the names transformers uses.

Letters: B rows, T tokens, E hidden, N query heads, K kv heads, H head size.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    vocab: int = 3072
    hidden: int = 384
    layers: int = 5
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 832
    context: int = 2048
    theta: float = 10000.0
    eps: float = 1e-6

    def config(self, *, bos: int, eos: list[int], pad: int) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.context,
            "rope_theta": self.theta,
            "rms_norm_eps": self.eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "vocab_size": self.vocab,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "torch_dtype": "bfloat16",
        }


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight.to(x.dtype)


class Linear(nn.Module):
    """Weights in float32, product in the input's dtype."""

    def __init__(self, inputs: int, outputs: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * std)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def _rotate(x_BNTH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    low, high = x_BNTH.chunk(2, -1)
    return x_BNTH * cos_TH + torch.cat((-high, low), -1) * sin_TH


class Attention(nn.Module):
    def __init__(self, shape: Shape, std: float, out_std: float) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = Linear(shape.hidden, queries, std)
        self.k_proj = Linear(shape.hidden, keys, std)
        self.v_proj = Linear(shape.hidden, keys, std)
        self.o_proj = Linear(queries, shape.hidden, out_std)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        rows, length, _ = x.shape
        size, group = self.shape.head_dim, self.shape.heads // self.shape.kv_heads
        q = self.q_proj(x).view(rows, length, -1, size).transpose(1, 2)
        k = self.k_proj(x).view(rows, length, -1, size).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, -1, size).transpose(1, 2)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))
        return mixed


class Feed(nn.Module):
    def __init__(self, shape: Shape, std: float, out_std: float) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden, shape.intermediate, std)
        self.up_proj = Linear(shape.hidden, shape.intermediate, std)
        self.down_proj = Linear(shape.intermediate, shape.hidden, out_std)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        std = 0.02
        out_std = std / math.sqrt(2 * shape.layers)
        self.input_layernorm = Norm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape, std, out_std)
        self.post_attention_layernorm = Norm(shape.hidden, shape.eps)
        self.mlp = Feed(shape, std, out_std)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Trunk(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.eps)


class Llama(nn.Module):
    cos_TH: Tensor
    sin_TH: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        frequencies = shape.theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angles = torch.outer(torch.arange(shape.context).float(), frequencies)
        angles = torch.cat((angles, angles), -1)
        self.register_buffer("cos_TH", angles.cos(), persistent=False)
        self.register_buffer("sin_TH", angles.sin(), persistent=False)

    def forward(
        self,
        tokens_BT: Tensor,
        documents_BT: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Logits [B, T, vocab]; a token sees its own document only, all before it without any."""
        length = tokens_BT.shape[1]
        x = self.model.embed_tokens(tokens_BT).to(dtype)
        cos, sin = self.cos_TH[:length].to(dtype), self.sin_TH[:length].to(dtype)
        mask = None
        if documents_BT is not None:
            same = documents_BT[:, :, None] == documents_BT[:, None, :]
            seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            hidden = torch.zeros((), dtype=dtype, device=x.device)
            mask = hidden.masked_fill(~(same & seen), -math.inf)[:, None]
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight.to(dtype))

    def loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        documents_BT: Tensor | None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Mean cross-entropy over the targets that are not IGNORED."""
        logits = self(tokens_BT, documents_BT, dtype)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets_BT.flatten())

    def export(self, folder: Path, *, bos: int, eos: list[int], pad: int) -> None:
        """config.json, generation_config.json and model.safetensors in bfloat16."""
        config = self.shape.config(bos=bos, eos=eos, pad=pad)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        generation = {
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "do_sample": True,
            "temperature": 0.5,
            "top_p": 0.95,
        }
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        weights = {
            name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
            for name, tensor in self.state_dict().items()
        }
        part = folder / "model.safetensors.part"
        save_file(weights, str(part), metadata={"format": "pt"})
        part.chmod(0o644)
        part.rename(folder / "model.safetensors")
