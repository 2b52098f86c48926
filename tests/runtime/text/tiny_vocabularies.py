"""Small tokenizers made on the spot, written as model folders."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from appliance.runtime.model.registry import spec_of
from appliance.runtime.spec import ModelSpec

TEXTS = [
    "The quick brown fox jumps over the lazy dog. Hello world, hello there!",
    "größe naïve café 東京 こんにちは 👋🏽 \U0001f468‍\U0001f469‍\U0001f467 mixed\ttabs\nand lines",
    "stop stopping stopped nonstop STOP END endless ending\n\n",
    "0123456789 + - = {} [] () <> / \\ \" ' ` ~ @ # $ % ^ & * _ |",
] * 3

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", special=False)])
    tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
    )
    return tokenizer


def sentence_pieces() -> Tokenizer:
    """As a converted Llama 2 tokenizer: ▁ for space, bytes for what no piece covers."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{b:02X}>": 3 + b for b in range(256)}
    pieces = ["▁", "▁▁", *"abcdefghijklmnopqrstuvwxyzTHSEND.,!é", "▁the", "he", "th", "lo", "▁a"]
    merges = [("t", "h"), ("h", "e"), ("l", "o"), ("▁", "a"), ("▁", "▁")]
    for piece in pieces:
        vocab.setdefault(piece, len(vocab))
    vocab.setdefault("▁th", len(vocab))
    merges += [("▁", "th"), ("▁th", "e")]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def word_pieces() -> Tokenizer:
    """A decoder chain that is not understood byte by byte."""
    words = ["hello", "world", "##ing", "##s", "a", "b", "##b", "[UNK]"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, template: str | None = TEMPLATE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|bos|>", "eos_token": {"content": "<|end|>"}}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.25, "top_p": 0.5, "top_k": 7, "eos_token_id": 1})
    )
    return folder


def config(vocab: int, context: int = 512) -> dict[str, object]:
    """A config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "vocab_size": vocab,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": context,
        "eos_token_id": 1,
    }


def spec(vocab: int, context: int = 512) -> ModelSpec:
    return spec_of(config(vocab, context))
