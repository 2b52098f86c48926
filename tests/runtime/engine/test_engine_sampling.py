"""The sampler against transformers' own warpers, and what a request may ask of its sampling."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from appliance.kernels import torch_ops
from appliance.kernels.chains import gumbel_noise
from appliance.kernels.torch_ops import TorchOps
from appliance.runtime.engine.inputs import Staging
from appliance.runtime.engine.sample import logprobs, sampler, state
from appliance.runtime.engine.sample.sampler import INVALID, Sampler
from appliance.runtime.engine.sample.state import SamplingState
from appliance.runtime.offline import Engine
from appliance.runtime.wire.request import Sampling
from appliance.runtime.wire.step import PENALIZED_MOST, Masks, NewRow
from tests.reference import models

CPU = torch.device("cpu")
VOCAB = 97


def i32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


class Rows:
    """A sampler with its state; slot i holds the i-th Sampling given."""

    def __init__(self, *samplings: Sampling, history: list[int] | None = None, prompt: int = 1):
        self.state = SamplingState(len(samplings), VOCAB, CPU)
        self.sampler = Sampler(self.state, TorchOps(), Staging(CPU, 1))
        known = np.array(history or [0], dtype=np.int32)
        for slot, sampling in enumerate(samplings):
            self.state.take(NewRow(slot, slot, known, prompt, sampling))
        self.slots = np.arange(len(samplings), dtype=np.int32)

    def tokens(
        self, logits: torch.Tensor, output: int = 0, masks: Masks | None = None
    ) -> list[int]:
        outputs = np.full(len(self.slots), output, dtype=np.int32)
        return self.sampler.sample(logits.clone(), self.slots, outputs, masks).tokens.tolist()


def one(**fields) -> Sampling:
    return Sampling(max_tokens=100, **fields)


@pytest.mark.parametrize(
    "top_k,top_p,min_p", [(5, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.2), (20, 0.8, 0.05)]
)
def test_draws_follow_the_distribution_that_transformers_warps(top_k, top_p, min_p):
    torch.manual_seed(3)
    logits = torch.randn(1, VOCAB) * 2
    rows = Rows(
        *(one(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p, seed=s) for s in range(4000))
    )
    drawn = np.bincount(rows.tokens(logits.expand(4000, VOCAB)), minlength=VOCAB) / 4000
    warped = TemperatureLogitsWarper(0.8)(None, logits)
    if top_k:
        warped = TopKLogitsWarper(top_k)(None, warped)
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(None, warped)
    if min_p:
        warped = MinPLogitsWarper(min_p)(None, warped)
    want = warped.softmax(-1)[0].numpy()
    assert (drawn[want == 0] == 0).all()
    # 4 standard deviations of a share drawn 4000 times
    assert (np.abs(drawn - want) <= 4 * np.sqrt(want * (1 - want) / 4000) + 1e-9).all()


@pytest.mark.parametrize("seed,token", [(457, 24184), (1005, 9398), (2332, 4417)])
def test_the_largest_noise_is_finite(seed: int, token: int) -> None:
    """Where all bits are set, a uniform number that rounds to 1 would win over any logit."""
    noise = gumbel_noise(torch.tensor([seed]), torch.tensor([0]), token + 1)
    assert torch.isfinite(noise).all()
    assert noise[0, token] > 15


def test_gumbel_noise_is_gumbel():
    noise = gumbel_noise(torch.arange(50), torch.arange(50), 2000)
    assert abs(float(noise.mean()) - 0.5772) < 0.02
    assert abs(float(noise.var()) - 1.6449) < 0.05
    again = gumbel_noise(torch.arange(50)[7:8], torch.arange(50)[7:8], 2000)
    assert torch.equal(again[0], noise[7])


def test_repetition_penalty_is_that_of_transformers():
    torch.manual_seed(1)
    history, logits = [3, 5, 5, 9, 11], torch.randn(1, VOCAB)
    rows = Rows(one(temperature=0.0, repetition_penalty=1.7), history=history, prompt=3)
    x = logits.clone()
    rows.sampler._penalize(x, rows.slots, np.array([0], dtype=np.int32))
    want = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([history]), logits.clone())
    assert torch.allclose(x, want)


def test_frequency_and_presence_count_outputs_only_and_go_on_counting():
    history = [3, 5, 5, 9]
    rows = Rows(
        one(temperature=0.0, frequency_penalty=0.5, presence_penalty=0.25),
        history=history,
        prompt=1,
    )
    flat = torch.zeros(1, VOCAB)
    x = flat.clone()
    rows.sampler._penalize(x, rows.slots, np.array([0], dtype=np.int32))
    assert x[0, 3] == 0  # only in the prompt
    assert x[0, 5] == pytest.approx(-1.25)
    assert x[0, 9] == pytest.approx(-0.75)
    peak = flat.clone()
    peak[0, 20] = 1.0
    assert rows.tokens(peak) == [20]
    x = flat.clone()
    rows.sampler._penalize(x, rows.slots, np.array([0], dtype=np.int32))
    assert x[0, 20] == pytest.approx(-0.75)


def test_a_token_is_counted_up_to_a_limit_and_never_turns_into_a_reward():
    most = state.COUNTED_MOST
    rows = Rows(
        one(temperature=0.0, frequency_penalty=0.001, repetition_penalty=1.5),
        history=[3, *[5] * (most - 1), *[9] * (most + 5)],
    )
    peak = torch.zeros(1, VOCAB)
    peak[0, 5] = 1e6
    for _ in range(3):
        assert rows.tokens(peak) == [5]
    x = torch.zeros(1, VOCAB)
    rows.sampler._penalize(x, rows.slots, np.array([0], dtype=np.int32))
    assert x[0, 5] == x[0, 9] == pytest.approx(-0.001 * most)
    assert x[0, 3] == 0 and rows.state.penalties.table[0, 3] == 1


@pytest.mark.parametrize("asking", [[], [4], [0, 3, 4, 9], list(range(10))])
def test_log_probabilities_are_of_the_rows_that_ask_and_of_what_the_model_said(
    asking: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of what bias, penalties, masks and temperature made of it, whatever part a row is in."""
    torch.manual_seed(11)
    logits = torch.randn(10, VOCAB)
    settings = [
        one(
            temperature=0.7 * (i % 2), logprobs=i % 3 if i in asking else -1, seed=i,
            logit_bias=((7, 9.0),) if i % 4 == 0 else (),
            frequency_penalty=1.5 if i % 3 == 0 else 0.0,
        )
        for i in range(10)
    ]  # fmt: skip
    bits = np.zeros((1, 4), dtype=np.uint32)
    bits[0, 2] = 1 << 6
    monkeypatch.setattr(logprobs, "_ROWS", 3)
    rows = Rows(*settings, history=[1, 5, 7, 7])
    masks = Masks(i32(9), bits)
    given = logits.clone()
    found = rows.sampler.sample(given, rows.slots, np.zeros(10, dtype=np.int32), masks)
    if not asking:
        assert found.logprobs is None
        return
    raw, widest = logits.log_softmax(-1), max(i % 3 for i in asking)
    assert found.logprobs is not None and found.logprobs.top.shape == (10, widest)
    for row in range(10):
        taken, top = found.logprobs.taken[row], found.logprobs.top[row]
        if row not in asking:
            assert taken == 0 and not top.any()
            continue
        assert taken == pytest.approx(float(raw[row, found.tokens[row]]), abs=1e-6)
        assert torch.allclose(top, raw[row].topk(widest).values)
        assert torch.equal(raw[row][found.logprobs.top_ids[row]], top)
    assert found.tokens[9] == 70


def test_penalties_and_masks_in_parts_are_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    allowed = np.random.default_rng(3).integers(0, 1 << 32, (7, 4), dtype=np.uint32)
    masks = Masks(i32(0, 2, 3, 4, 7, 9, 10), allowed)
    settings = [one(temperature=0.0, repetition_penalty=1.1 + i / 9) for i in range(11)]
    logits, found = torch.randn(11, VOCAB), []
    for part in (64, 3):
        monkeypatch.setattr(torch_ops, "CHANGED_ROWS", part)
        rows = Rows(*settings, history=[2, 3, 3, 5])
        x = logits.clone()
        rows.sampler._penalize(x, rows.slots, rows.slots)
        found.append(rows.sampler._mask(x, masks))
    assert torch.equal(*found) and (found[0] != logits).any(1).all()
    dropped = torch.isinf(found[0])
    assert not dropped[1].any() and dropped[2].sum() == sum(
        not allowed[1, i // 32] >> (i % 32) & 1 for i in range(VOCAB)
    )


def test_a_cpu_chooses_in_parts_what_it_chooses_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large vocabulary's logits leave its cache between the operations of a chain."""
    torch.manual_seed(8)
    settings = [one(temperature=0.9, top_p=0.8 + i / 100, seed=i) for i in range(11)]
    logits, found = torch.randn(11, VOCAB), []
    for elements in (1 << 18, 3 * VOCAB, 1):
        monkeypatch.setattr(torch_ops, "_CACHED", elements)
        found.append(Rows(*settings).tokens(logits))
    assert found[0] == found[1] == found[2] and len(set(found[0])) > 5


def test_the_table_of_penalties_does_not_grow():
    """It stands before memory is measured: what grew while serving would be taken from nobody."""
    held = state.SamplingState(4000, VOCAB, CPU).penalties
    table = held.table
    assert table.shape == (PENALIZED_MOST, VOCAB)
    known = np.array([1, 2], dtype=np.int32)
    for turn in range(3):
        for slot in range(PENALIZED_MOST):
            held.take(NewRow(slot, slot, known + turn, 1, one()))
        assert held.table is table
        assert len(set(held.rows(np.arange(PENALIZED_MOST)).tolist())) == PENALIZED_MOST
        assert (table[:, 1 + turn] == 1).all() and (table[:, 2 + turn] == 2).all()
        assert int((table != 0).sum()) == 2 * PENALIZED_MOST
        for slot in range(PENALIZED_MOST):
            held.drop(slot)
    assert state.SamplingState(8, VOCAB, CPU).penalties.table.shape == (8, VOCAB)


def test_bias_mask_and_min_tokens():
    logits = torch.zeros(3, VOCAB)
    logits[:, 4] = 2.0
    rows = Rows(
        one(temperature=0.0, logit_bias=((4, -100.0), (8, 3.0))),
        one(temperature=0.0),
        one(temperature=0.0, min_tokens=2, stop_ids=(4,), logit_bias=((9, 1.0),)),
    )
    bits = np.zeros((1, -(-VOCAB // 32)), dtype=np.uint32)
    bits[0, 40 // 32] = 1 << (40 % 32)
    masks = Masks(rows=i32(1), bits=bits)
    assert rows.tokens(logits, output=0, masks=masks) == [8, 40, 9]
    assert rows.tokens(logits, output=2) == [8, 4, 4]


def test_rows_that_are_not_finite_are_told():
    logits = torch.zeros(2, VOCAB)
    logits[1, 3] = float("nan")
    assert Rows(one(temperature=0.0), one(temperature=0.0)).tokens(logits) == [0, INVALID]
    assert Rows(one(), one()).tokens(logits)[1] == INVALID


def test_a_slot_keeps_nothing_of_the_row_before():
    rows = Rows(
        one(temperature=0.0, logit_bias=((8, 50.0),), repetition_penalty=2.0, logprobs=3),
        history=[1, 2],
    )
    rows.state.drop(0)
    rows.state.take(NewRow(0, 9, i32(1), 1, one(temperature=0.0)))
    logits = torch.zeros(1, VOCAB)
    logits[0, 5] = 1.0
    sampled = rows.sampler.sample(logits, rows.slots, i32(0), None)
    assert sampled.tokens.tolist() == [5]
    assert sampled.logprobs is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models.make(tmp_path_factory.mktemp("model"), "llama").folder


SETTINGS = {"model.dtype": "float32", "engine.device": "cpu", "engine.threads": 1,
            "engine.max_total_tokens": 8000, "schedule.max_running": 16}  # fmt: skip


@pytest.fixture(scope="module")
def engine(folder):
    with Engine(folder, SETTINGS) as engine:
        yield engine


SEEDED = {"max_tokens": 24, "temperature": 1.0, "top_p": 0.9, "seed": 5, "ignore_eos": True}


def test_the_same_seed_gives_the_same_tokens_alone_and_in_any_batch(engine):
    prompt = models.prompts()[3]
    [alone] = engine.generate([prompt], SEEDED)
    streams = [
        engine.stream(p, {**SEEDED, "seed": i}) for i, p in enumerate(models.prompts()[8:20])
    ]
    same = engine.stream(prompt, SEEDED)
    for stream in [*streams, same]:
        stream.begin()
    ids = [i for delta in same for i in delta.ids]
    for stream in streams:
        for _ in stream:
            pass
    assert ids == alone.ids
    [other] = engine.generate([prompt], {**SEEDED, "seed": 6})
    assert other.ids != alone.ids


def test_stop_ids_stop_strings_and_max_tokens(engine):
    prompt = models.prompts()[5]
    [plain] = engine.generate([prompt], {"max_tokens": 20, "temperature": 0.0})
    assert plain.finish_reason == "length" and len(plain.ids) == 20
    stop = plain.ids[6]
    at = plain.ids.index(stop)
    [stopped] = engine.generate(
        [prompt], {"max_tokens": 20, "temperature": 0.0, "stop_ids": (stop,)}
    )
    assert (stopped.finish_reason, stopped.matched) == ("stop", stop)
    assert stopped.ids == plain.ids[: at + 1]
    forced = {"max_tokens": 20, "temperature": 0.0, "logit_bias": ((100, 1000.0),)}
    [biased] = engine.generate([prompt], forced)
    assert biased.ids == [100] * 20


def test_an_early_close_aborts_and_gives_the_pages_back(engine):
    stream = engine.stream(models.prompts()[0], {"max_tokens": 200, "temperature": 0.0})
    next(stream)
    stream.close()
    [answer] = engine.generate([models.prompts()[1]], {"max_tokens": 4, "temperature": 0.0})
    assert len(answer.ids) == 4
    deadline_steps = engine.scheduler.stats().running
    assert deadline_steps <= 1


async def test_asyncio_faces(engine):
    import asyncio

    prompts = models.prompts()[:6]
    want = engine.generate(prompts, {"max_tokens": 10, "temperature": 0.0})
    got = await asyncio.gather(
        *(engine.async_generate(p, {"max_tokens": 10, "temperature": 0.0}) for p in prompts)
    )
    assert [g.ids for g in got] == [w.ids for w in want]
    text = ""
    async for delta in engine.async_stream(prompts[0], {"max_tokens": 10, "temperature": 0.0}):
        text += delta.text
    assert text == want[0].text


def test_many_rows_in_parts_are_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws, biases, penalties, masks and log probabilities: whatever part a row is in."""
    torch.manual_seed(5)
    kinds = (
        one(temperature=0.0), one(temperature=0.9, top_p=0.8), one(temperature=0.0, logprobs=2),
        one(temperature=1.0, repetition_penalty=1.4), one(temperature=0.0, logit_bias=((7, 50.0),)),
    )  # fmt: skip
    settings = [msgspec.structs.replace(kinds[i % 5], seed=i) for i in range(23)]
    logits = torch.randn(23, VOCAB)
    outputs = np.zeros(23, dtype=np.int32)
    bits = np.zeros((2, (VOCAB + 31) // 32), dtype=np.uint32)
    bits[0, 1], bits[1, 2] = 1 << 5, 1 << 3  # one token each
    masks = Masks(i32(5, 20), bits)
    found = []
    for part in (512, 4):
        monkeypatch.setattr(sampler, "PART", part)
        rows = Rows(*settings)
        found.append(rows.sampler.sample(logits.clone(), rows.slots, outputs, masks))
    whole, parts = found
    assert torch.equal(whole.tokens, parts.tokens)
    assert whole.tokens[5] == 37 and whole.tokens[20] == 67 and whole.tokens[4] == 7
    assert whole.logprobs is not None and parts.logprobs is not None
    for a, b in zip(whole.logprobs.fields(), parts.logprobs.fields(), strict=True):
        assert a.shape == b.shape and torch.allclose(a, b)
