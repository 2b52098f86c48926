"""Tiny random models of every family, saved as checkpoints, and what transformers makes of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

VOCAB = 300

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 5000.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
        "rope_theta": 10000.0}  # fmt: skip

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied-bias": {"model_type": "llama", "tie_word_embeddings": True,
                        "attention_bias": True, "mlp_bias": True},
    "llama-rope3": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama-linear": {"model_type": "llama", "rope_parameters": {
        "rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "llama-dynamic": {"model_type": "llama", "rope_parameters": {
        "rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
    "llama-yarn": {"model_type": "llama", "rope_parameters": YARN},
    "mistral-window": {"model_type": "mistral", "sliding_window": 40},
    "mistral-nemo": {"model_type": "mistral", "sliding_window": None, "head_dim": 24},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 24,
                     "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """folder: the checkpoint. model: transformers' own, float32, in eval mode."""

    folder: Path
    model: PreTrainedModel


def write_tokenizer(folder: Path, vocab: int = VOCAB) -> None:
    """Bytes as tokens 0 … 255, then unused ones up to the vocabulary's size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {c: i for i, c in enumerate(alphabet)}
    for i in range(len(pieces), vocab):
        pieces[f"<unused{i}>"] = i
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "x"}))


def make(folder: Path, name: str, seed: int = 0, **changes: Any) -> Reference:
    """A random model of FAMILIES[name], saved to `folder` in float32 (more than one file)."""
    values = {**SHAPE, **FAMILIES[name], **changes}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(seed)
    return _saved(folder, AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())


def make_classifier(folder: Path, name: str, classes: int, **changes: Any) -> Reference:
    """The same under a head that tells classes."""
    names = ("bad", "fair", "good")[:classes]
    values = {**SHAPE, **FAMILIES[name], "id2label": dict(enumerate(names)), **changes}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    return _saved(folder, model.eval())


def _saved(folder: Path, model: PreTrainedModel) -> Reference:
    with torch.no_grad():
        for parameter in model.parameters():  # larger than usual, so that logits differ clearly
            if parameter.dim() > 1:
                parameter.mul_(4)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, max_shard_size="100KB")
    write_tokenizer(folder)
    return Reference(folder, model)


@cache
def prompts(groups: int = 8, each: int = 8, vocab: int = VOCAB) -> tuple[tuple[int, ...], ...]:
    """groups × each prompts; those of a group share a prefix, and have the same length."""
    rng = np.random.default_rng(7)
    out = []
    for group in range(groups):
        length = 5 + 11 * group
        shared = rng.integers(0, vocab, length * 3 // 4).tolist()
        for _ in range(each):
            out.append(tuple(shared + rng.integers(0, vocab, length - len(shared)).tolist()))
    return tuple(out)


@torch.inference_mode()
def greedy(model: PreTrainedModel, ids: tuple[tuple[int, ...], ...], new: int) -> list[list[int]]:
    """Greedy continuations by transformers' generate, prompts of one length in one batch."""
    answers: dict[int, list[int]] = {}
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(ids):
        by_length.setdefault(len(prompt), []).append(i)
    for members in by_length.values():
        batch = torch.tensor([ids[i] for i in members])
        out = model.generate(
            batch, attention_mask=torch.ones_like(batch), max_new_tokens=new, min_new_tokens=new,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
        for i, row in zip(members, out.tolist(), strict=True):
            answers[i] = row[len(ids[i]) :]
    return [answers[i] for i in range(len(ids))]


NEAR_TIE = 3e-4
"""Logits closer than this may change places by float32 rounding, which depends on the batch."""


@torch.inference_mode()
def clear_cut(
    model: PreTrainedModel, new: int, groups: int = 8, each: int = 8
) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """groups × each prompts on whose greedy path no step is a near tie, and their answers."""
    candidates = prompts(groups, each + 6)
    answers = greedy(model, candidates, new)
    kept: dict[int, list[int]] = {}
    for i, (prompt, answer) in enumerate(zip(candidates, answers, strict=True)):
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        top = logits.topk(2, -1).values
        members = kept.setdefault(len(prompt), [])
        if len(members) < each and float((top[:, 0] - top[:, 1]).min()) > NEAR_TIE:
            members.append(i)
    chosen = [i for members in kept.values() for i in members]
    assert len(chosen) == groups * each, "too many near ties: choose another seed"
    return [candidates[i] for i in chosen], [answers[i] for i in chosen]


@torch.inference_mode()
def logprobs(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """float32 [n - 1]: log probability of each id after those before it."""
    logits = model(torch.tensor([ids])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
