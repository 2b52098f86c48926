"""Log probabilities of tokens taken, of the likeliest, and of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from appliance.runtime.wire.step import PromptLogprobs, StepLogprobs

_SLICE = 256
"""Prompt tokens whose logits are in memory at a time."""
_ROWS = 64
"""Rows whose log probabilities are."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """taken float32 [S]; top_ids int64, top float32 [S, k]."""

    taken: Tensor
    top_ids: Tensor
    top: Tensor

    def fields(self) -> list[Tensor]:
        return [self.taken, self.top_ids, self.top]


def log_softmax(logits_SV: Tensor) -> Tensor:
    return torch.log_softmax(logits_SV.float(), -1)


def choose(raw_SV: Tensor, tokens_S: Tensor, k: int) -> Chosen:
    taken = raw_SV.gather(1, tokens_S[:, None]).squeeze(1)
    top, ids = raw_SV.topk(min(k, raw_SV.shape[1]), -1)
    return Chosen(taken, ids, top)


def of_rows(logits_SV: Tensor, tokens_S: Tensor, asked: Tensor, k: int) -> Chosen:
    """Of the rows `asked` int64 [n], before their logits were changed; zeros in the others, which
    must not pay for them."""
    rows, k = len(tokens_S), min(k, logits_SV.shape[1])
    all_rows = Chosen(
        taken=logits_SV.new_zeros(rows, dtype=torch.float32),
        top_ids=logits_SV.new_zeros((rows, k), dtype=torch.int64),
        top=logits_SV.new_zeros((rows, k), dtype=torch.float32),
    )
    for part in asked.split(_ROWS) if len(asked) else ():
        found = choose(log_softmax(logits_SV[part]), tokens_S[part], k)
        for whole, own in zip(all_rows.fields(), found.fields(), strict=True):
            whole[part] = own
    return all_rows


def joined(parts: Sequence[Chosen]) -> Chosen:
    """Of rows one after the other, with as many top entries each."""
    fields = zip(*(part.fields() for part in parts), strict=True)
    return Chosen(*(torch.cat(field) for field in fields))


def spread(chosen: Sequence[Tensor], rows: int, sampled: np.ndarray) -> StepLogprobs:
    """From the S sampling rows to all rows of the step. chosen: a Chosen's fields on the host;
    sampled: the indices of its rows."""
    k = chosen[1].shape[1]
    taken = np.zeros(rows, dtype=np.float32)
    ids = np.zeros((rows, k), dtype=np.int32)
    top = np.zeros((rows, k), dtype=np.float32)
    taken[sampled] = chosen[0].numpy()
    ids[sampled] = chosen[1].numpy()
    top[sampled] = chosen[2].numpy()
    return StepLogprobs(taken, ids, top)


def of_prompt(
    hidden_NE: Tensor, targets: np.ndarray, k: int, head: Callable[[Tensor], Tensor]
) -> Chosen:
    """Of `targets` int32 [n], each after the hidden state of the token before it [n, hidden]."""
    wanted = torch.from_numpy(targets.astype(np.int64)).to(hidden_NE.device, non_blocking=True)
    parts = []
    for begin in range(0, len(targets), _SLICE):
        part = slice(begin, begin + _SLICE)
        chosen = choose(log_softmax(head(hidden_NE[part])), wanted[part], k)
        parts.append(chosen)
    return joined(parts)


def prompt_row(row: int, chosen: Sequence[Tensor]) -> PromptLogprobs:
    """chosen: the fields of `of_prompt`'s result, on the host."""
    return PromptLogprobs(
        row=row,
        taken=chosen[0].numpy(),
        top_ids=chosen[1].numpy().astype(np.int32),
        top_logprobs=chosen[2].numpy(),
    )
