"""Log probabilities in the shapes of the chat route, the completions route, and prompt_logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.runtime.wire.text import TextLogprob


def chat_logprobs(entries: Sequence[TextLogprob]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": e.text,
                "logprob": e.logprob,
                "bytes": list(e.raw),
                "top_logprobs": [
                    {"token": text, "logprob": value, "bytes": list(raw)}
                    for _, text, raw, value in e.top
                ],
            }
            for e in entries
        ],
        "refusal": None,
    }


def completion_logprobs(
    prompt: Sequence[TextLogprob], output: Sequence[TextLogprob], output_at: int
) -> dict[str, Any]:
    """OpenAI's older shape. output_at: characters of text before the output (its prompt, echoed).

    The alternatives always hold the token itself; the first token of a prompt has none.
    """
    entries = [*prompt, *output]
    offsets = [e.offset for e in prompt] + [e.offset + output_at for e in output]
    return {
        "text_offset": offsets,
        "token_logprobs": [e.logprob for e in entries],
        "tokens": [e.text for e in entries],
        "top_logprobs": [
            None
            if e.logprob is None
            else {e.text: e.logprob} | {text: value for _, text, _, value in e.top}
            for e in entries
        ],
    }


def prompt_logprobs(entries: Sequence[TextLogprob]) -> list[dict[str, Any] | None]:
    """vLLM's shape: for each prompt token a table of ids; the first has none."""
    out: list[dict[str, Any] | None] = []
    for e in entries:
        if e.logprob is None:
            out.append(None)
            continue
        ranks = {id: rank for rank, (id, _, _, _) in enumerate(e.top, 1)}
        table = {
            str(e.id): {"logprob": e.logprob, "rank": ranks.get(e.id), "decoded_token": e.text}
        }
        for id, text, _, value in e.top:
            table[str(id)] = {"logprob": value, "rank": ranks[id], "decoded_token": text}
        out.append(table)
    return out
