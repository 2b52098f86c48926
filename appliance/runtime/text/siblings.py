"""A base model's name -> that of its sibling which was made for chats, as its maker names them.

By rule and not asked anywhere: what is told of it says so.
"""

from __future__ import annotations

import re

_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "Qwen": (
        (r"(Qwen[3-9].*)-Base", r"\1"),
        (r"(Qwen1\.5-.*|Qwen-\d.*)", r"\1-Chat"),
        (r"(Qwen2.*)", r"\1-Instruct"),
    ),
    "meta-llama": ((r"(Llama-2-\d+b)(-hf)?", r"\1-chat\2"), (r"(.*Llama-[3-9].*)", r"\1-Instruct")),
    "mistralai": (
        (r"(.*)-Base-(\d{4})", r"\1-Instruct-\2"),
        (r"(.*)-(v\d[\d.]*)", r"\1-Instruct-\2"),
    ),
    "google": ((r"(gemma.*)-pt", r"\1-it"), (r"(gemma-\d?-?\d+b)", r"\1-it")),
    "deepseek-ai": ((r"(.*)-Base", r"\1"), (r"(.*)-base", r"\1-chat")),
    "HuggingFaceTB": ((r"(.*)-Base", r"\1"), (r"(SmolLM2?-.*)", r"\1-Instruct")),
    "tiiuae": ((r"(Falcon.*)-Base", r"\1-Instruct"), (r"(falcon-\d+b)", r"\1-instruct")),
    "ibm-granite": ((r"(.*)-base(-\w+)?", r"\1-instruct\2"),),
    "allenai": ((r"(OLMo.*|Olmo.*)", r"\1-Instruct"),),
    "01-ai": ((r"(Yi-.*)", r"\1-Chat"),),
}
"""Maker -> (pattern of a base model's whole name, its sibling's), the first that matches."""
_ANY = ((r"(.*)-Base", r"\1-Instruct"), (r"(.*)-base", r"\1-instruct"), (r"(.*)-pt", r"\1-it"))
_MAKERS = {"llm-research": "meta-llama", "ai-modelscope": ""}
"""Names of makers on ModelScope, in lower case."""
_CHATS = re.compile(r"[-_](instruct|chat|it|assistant|thinking)(?=$|[-_.])", re.IGNORECASE)


def chat_sibling(model: str) -> str:
    """`mistralai/Mistral-7B-v0.3` -> `mistralai/Mistral-7B-Instruct-v0.3`; empty where no rule is
    known, for a folder, and for what is made for chats already."""
    maker, _, name = model.rpartition("/")
    if not maker or "/" in maker or maker in (".", "..", "~") or _CHATS.search(name):
        return ""
    known = {m.lower(): rules for m, rules in _RULES.items()}
    rules = known.get(_MAKERS.get(maker.lower(), maker).lower(), ())
    for pattern, sibling in (*rules, *_ANY):
        found = re.fullmatch(pattern, name)
        if found:
            return f"{maker}/{found.expand(sibling)}"
    return ""
