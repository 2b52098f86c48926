"""Two ranks over gloo say what one says: sharded heads, repeated kv heads, an odd vocabulary."""

from __future__ import annotations

import pytest
import torch

from appliance.kernels.compiled import lacking
from appliance.runtime.offline import Engine
from tests.reference import models

SETTINGS = {"model.dtype": "float32", "engine.device": "cpu", "engine.threads": 1,
            "engine.max_total_tokens": 8000, "schedule.max_running": 16, 
            "schedule.chunk": 32}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,changes,compiled",
    [
        ("llama", {"vocab_size": 301}, True),
        ("qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}, False),
        ("qwen3", {}, False),
    ],
)
def test_two_ranks_give_the_tokens_of_one(tmp_path, caplog, name, changes, compiled):
    """compiled: what chooses the tokens of two is compiled by torch, where there is a compiler."""
    reference = models.make(tmp_path, name, **changes)
    prompts, expected = models.clear_cut(reference.model, 24, groups=4, each=4)
    greedy = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True}
    sampled = {**greedy, "temperature": 1.0, "seed": 11, "logprobs": 2, "prompt_logprobs": 1}
    with Engine(tmp_path, SETTINGS) as solo:
        want = solo.generate(prompts[:4], sampled)
    shared = {"schedule.share_from": 1, "schedule.page_size": 4,
              "engine.compile": compiled and not lacking(torch.device("cpu"))}  # fmt: skip
    with Engine(tmp_path, {**SETTINGS, "engine.tp": 2, **shared}) as pair:
        assert [a.ids for a in pair.generate(prompts, greedy)] == expected
        got = pair.generate(prompts[:4], sampled)
    assert [a.ids for a in got] == [a.ids for a in want]
    for a, b in zip(got, want, strict=True):
        for x, y in zip(
            a.logprobs + a.prompt_logprobs, b.logprobs + b.prompt_logprobs, strict=True
        ):
            assert x.logprob == y.logprob or x.logprob == pytest.approx(y.logprob, abs=1e-4)
    assert "not compiled" not in caplog.text, "the logits of two ranks came in another form"
