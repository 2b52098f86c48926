"""The engine says what transformers says: every family, every way of scheduling it."""

from __future__ import annotations

import itertools

import pytest
import torch

from appliance.runtime.model.attention.cascade import CascadePlan
from appliance.runtime.model.registry import read_spec
from appliance.runtime.offline import Engine
from tests.reference import models

NEW = 64
SETTINGS = {
    "model.dtype": "float32",
    "engine.device": "cpu",
    "engine.threads": 1,
    "engine.max_total_tokens": 20000,
    "schedule.max_running": 64,
}
GREEDY = {"max_tokens": NEW, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module", params=models.FAMILIES)
def reference(request, tmp_path_factory):
    return models.make(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def truth(reference):
    """(64 prompts, transformers' 64 greedy tokens for each)"""
    return models.clear_cut(reference.model, NEW)


@pytest.mark.parametrize(
    "cache,chunk,depth,retract",
    list(itertools.product((True, False), (16, 2048), (0, 1), (0, 5))),
)
def test_greedy_tokens_are_those_of_transformers(reference, truth, cache, chunk, depth, retract):
    prompts, expected = truth
    settings = {
        **SETTINGS,
        "schedule.prefix_cache": cache,
        "schedule.chunk": chunk,
        "schedule.depth": depth,
        "schedule.retract_every": retract,
    }
    with Engine(reference.folder, settings) as engine:
        answers = engine.generate(prompts, GREEDY)
        stats = engine.scheduler.stats()
    assert [a.ids for a in answers] == expected
    assert (stats.retractions > 0) == bool(retract)
    if not cache:
        assert stats.cache_hit_tokens == 0
    elif chunk == 2048 and not retract:
        assert stats.cache_hit_tokens > 0


def test_mixed_chunks(reference, truth):
    prompts, expected = truth
    settings = {**SETTINGS, "schedule.chunk": 16, "schedule.mixed_chunk": True}
    with Engine(reference.folder, settings) as engine:
        assert [a.ids for a in engine.generate(prompts, GREEDY)] == expected


def test_shared_pages_read_once(reference, truth, monkeypatch):
    """By layers without a window; beside prefill rows, and with rows that come and go."""
    prompts, expected = truth
    seen = []
    run = CascadePlan.run

    def counted(self, *args):
        seen.append(self)
        return run(self, *args)

    monkeypatch.setattr(CascadePlan, "run", counted)
    settings = {**SETTINGS, "schedule.share_from": 1, "schedule.page_size": 4,
                "schedule.mixed_chunk": True, "schedule.retract_every": 7}  # fmt: skip
    with Engine(reference.folder, settings) as engine:
        assert [a.ids for a in engine.generate(prompts, GREEDY)] == expected
    a = read_spec(reference.folder).attention
    assert bool(seen) == (0 in a.windows(2))


def test_logprobs_of_prompt_and_output(reference):
    ids = models.prompts()[-1]
    with Engine(reference.folder, {**SETTINGS, "schedule.chunk": 32}) as engine:
        [answer] = engine.generate([ids], {**GREEDY, "logprobs": 3, "prompt_logprobs": 2})
    want = models.logprobs(reference.model, [*ids, *answer.ids])
    got_prompt = [p.logprob for p in answer.prompt_logprobs]
    assert got_prompt[0] is None and len(got_prompt) == len(ids)
    assert torch.allclose(torch.tensor(got_prompt[1:]), want[: len(ids) - 1], atol=1e-4)
    got = torch.tensor([p.logprob for p in answer.logprobs])
    assert torch.allclose(got, want[len(ids) - 1 :], atol=1e-4)
    for entry in answer.logprobs:
        assert len(entry.top) == 3
        assert entry.top[0][0] == entry.id  # greedy takes the likeliest
        assert entry.top[0][3] >= entry.top[1][3] >= entry.top[2][3]
