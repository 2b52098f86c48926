"""The default model's tokenizer and chat template, as the files transformers reads.

Byte-level BPE over the generator's own text; every digit is a token of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.documents import (
    BOS,
    CALL,
    CALL_END,
    END,
    EOS,
    PAD,
    RESULT,
    RESULT_END,
    TOOLS,
    TOOLS_END,
    TOOLS_INTRO,
    TOOLS_OUTRO,
    TURN,
)

VOCABULARY = 3072
CONTROL = (PAD, BOS, EOS, TURN, END)
"""Tokens no reader should see; ids from 0."""
VISIBLE = (CALL, CALL_END, RESULT, RESULT_END, TOOLS, TOOLS_END)
"""Tokens that stay in decoded text, because parsers look for them; ids after CONTROL."""


def _quoted(text: str) -> str:
    return json.dumps(text)


CHAT_TEMPLATE = (
    "{%- macro text(content) -%}"
    "{%- if content is string -%}{{- content -}}"
    "{%- elif content is not none and content is defined -%}"
    "{%- for part in content -%}"
    "{%- if part is string -%}{{- part -}}"
    "{%- elif part.type == 'text' -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- endmacro -%}\n"
    "{%- set ns = namespace(start=0, system='') -%}\n"
    "{%- if messages and messages[0].role in ['system', 'developer'] -%}\n"
    "{%- set ns.system = text(messages[0].content) -%}\n"
    "{%- set ns.start = 1 -%}\n"
    "{%- endif -%}\n"
    "{%- if tools -%}\n"
    "{{- '<|im_start|>system\\n' + ns.system + ('\\n\\n' if ns.system else '') -}}\n"
    "{{- " + _quoted(TOOLS_INTRO) + " -}}\n"
    "{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}\n"
    "{{- " + _quoted(TOOLS_OUTRO) + " + '<|im_end|>\\n' -}}\n"
    "{%- elif ns.system -%}\n"
    "{{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n' -}}\n"
    "{%- endif -%}\n"
    "{%- for message in messages[ns.start:] -%}\n"
    "{%- set said = text(message.content) -%}\n"
    "{%- if message.role == 'tool' -%}\n"
    "{{- '<|im_start|>tool\\n<tool_response>\\n' + said + '\\n</tool_response><|im_end|>\\n' -}}\n"
    "{%- elif message.role == 'assistant' -%}\n"
    "{{- '<|im_start|>assistant\\n' + said -}}\n"
    "{%- for call in message.tool_calls or [] -%}\n"
    "{%- set called = call.function or call -%}\n"
    "{%- if said or not loop.first -%}{{- '\\n' -}}{%- endif -%}\n"
    '{{- \'<tool_call>\\n{"name": "\' + called.name + \'", "arguments": \' -}}\n'
    "{%- if called.arguments is string -%}{{- called.arguments -}}\n"
    "{%- else -%}{{- called.arguments | tojson -}}{%- endif -%}\n"
    "{{- '}\\n</tool_call>' -}}\n"
    "{%- endfor -%}\n"
    "{{- '<|im_end|>\\n' -}}\n"
    "{%- else -%}\n"
    "{{- '<|im_start|>' + ('system' if message.role == 'developer' else message.role) -}}\n"
    "{{- '\\n' + said + '<|im_end|>\\n' -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}\n"
)


def train(texts: Iterable[str], size: int = VOCABULARY) -> Tokenizer:
    """A tokenizer of at most `size` entries, the same for the same texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in CONTROL + VISIBLE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    shape = json.loads(tokenizer.to_str())
    for token in shape["added_tokens"]:
        token["special"] = token["content"] in CONTROL
    return Tokenizer.from_str(json.dumps(shape))


def save(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
