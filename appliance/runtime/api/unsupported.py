"""Fields that would change an answer and that nothing here honours: refused, each with a sentence.

Passed over, they would give an answer that was not asked for.
"""

from __future__ import annotations

import operator
from typing import Any, ClassVar

from msgspec import Struct

from appliance.errors import RequestError


class OfGeneration(Struct, kw_only=True):
    """Of both generating routes. A value that means the usual (null, false, nothing) is taken."""

    instead: ClassVar[dict[str, str]] = {
        "allowed_token_ids": "guided_choice, regex and ebnf say what may come",
        "bad_words": "logit_bias keeps tokens from coming",
        "beam_width": "sequences are sampled; n asks for several",
        "use_beam_search": "sequences are sampled; n asks for several",
        "custom_logit_processor": "logit_bias, penalties and grammars change what is sampled",
        "logits_processors": "logit_bias, penalties and grammars change what is sampled",
        "guided_whitespace_pattern": "structured_outputs.disable_any_whitespace says how JSON is "
        "laid out",
        "input_embeds": "send text or token ids",
        "prompt_embeds": "send text or token ids",
        "lora_path": "no adapters are served",
        "return_hidden_states": "/v1/embeddings gives those of a model that is made for it",
        "session_params": "send the whole conversation; its beginning is found in the cache",
        "stop_regex": "stop takes strings",
        "truncate_prompt_tokens": "cut the prompt before it is sent; /tokenize counts its tokens",
    }

    allowed_token_ids: Any = None
    bad_words: Any = None
    beam_width: Any = None
    use_beam_search: Any = None
    custom_logit_processor: Any = None
    logits_processors: Any = None
    guided_whitespace_pattern: Any = None
    input_embeds: Any = None
    prompt_embeds: Any = None
    lora_path: Any = None
    return_hidden_states: Any = None
    session_params: Any = None
    stop_regex: Any = None
    truncate_prompt_tokens: Any = None

    def refuse_all(self) -> None:
        """RequestError names the first of them that asks for something."""
        refuse(_of_generation(self), OfGeneration.instead)


_of_generation = operator.attrgetter(*OfGeneration.instead)


CHAT_INSTEAD = {
    "audio": "this model writes text only",
    "chat_template": "the model's own template is used; chat_template_kwargs are told to it",
    "documents": "put them into a message",
    "modalities": 'this model writes text only; ["text"] is taken',
    "web_search_options": "nothing here searches the web; tools may",
}


class OfVectors(Struct, kw_only=True):
    """Of the routes that give scores."""

    truncate_prompt_tokens: Any = None

    def refuse_all(self) -> None:
        refuse((self.truncate_prompt_tokens,), _VECTORS_INSTEAD)


_VECTORS_INSTEAD = {
    "truncate_prompt_tokens": "cut the texts before they are sent; /tokenize counts their tokens"
}


of_chat = operator.attrgetter(*CHAT_INSTEAD)


def refuse(values: tuple[Any, ...], instead: dict[str, str]) -> None:
    """RequestError for the first field of `instead` that asks for something. values: of each."""
    if not any(values):
        return
    for value, (name, what) in zip(values, instead.items(), strict=True):
        if value and value != ["text"]:
            raise RequestError(
                f"{name} is not supported; {what}.", code="unsupported_value", param=name
            )
