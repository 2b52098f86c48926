"""The model against transformers, the loop in small, and an evaluation that can fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from training import text, tokenizer
from training.documents import ToolCall, chat
from training.evaluate import GOALS, Report, calls, evaluate, fits, last_number, questions
from training.feed import Feed, Workers
from training.model import Llama, Shape
from training.topics import arithmetic, structured
from training.train import Probe, Recipe, Trainer, parts, run

TINY = Shape(vocab=1024, hidden=64, layers=2, heads=2, kv_heads=1, head_dim=32, intermediate=96)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on many threads, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small_tokenizer() -> Tokenizer:
    return tokenizer.train(text.sample_texts(0, 1500), 1024)


@pytest.fixture(scope="module")
def folder(small_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with every file."""
    out = tmp_path_factory.mktemp("model")
    torch.manual_seed(3)
    Llama(TINY).export(out, bos=1, eos=[4, 2], pad=0)
    tokenizer.save(small_tokenizer, out, TINY.context)
    return out


def test_default_shape_fits_the_repository() -> None:
    size = sum(p.numel() for p in Llama(Shape()).parameters()) * 2
    assert size <= 15_990_000


def test_export_answers_like_transformers(folder: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = Llama(TINY)
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    ours.load_state_dict(weights)
    tokens = torch.randint(0, TINY.vocab, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-4)


def test_documents_of_a_row_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model = Llama(TINY)
    first, second = torch.randint(0, 1024, (2, 9)), torch.randint(0, 1024, (2, 7))
    row = torch.cat((first, second), 1)
    documents = torch.tensor([[0] * 9 + [1] * 7] * 2)
    with torch.no_grad():
        together = model(row, documents)
        torch.testing.assert_close(together[:, :9], model(first), atol=1e-5, rtol=1e-4)
        # Rotary positions are relative, so the second starts anywhere.
        torch.testing.assert_close(together[:, 9:], model(second), atol=1e-5, rtol=1e-4)


def test_loss_falls_in_a_few_steps(small_tokenizer: Tokenizer) -> None:
    trainer = Trainer(Recipe(shape=TINY, peak_rate=5e-3))
    packer, rng = text.Packer(small_tokenizer, 128), Random(1)
    rows = packer.rows([text.document(rng) for _ in range(300)])[:48]
    losses = []
    for at in range(24):
        batch = torch.from_numpy(np.stack(rows[at % 6 * 8 : at % 6 * 8 + 8]))
        losses.append(float(trainer.step(parts(batch, "cpu", True), 5e-3)))
    assert losses[-1] < 0.8 * losses[0]


def test_restore_brings_the_last_good_weights_back() -> None:
    trainer = Trainer(Recipe(shape=TINY))
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    tokens = torch.randint(0, 1024, (2, 16))
    trainer.step((tokens, tokens, None), 1e-1)
    assert not torch.equal(before["model.norm.weight"], trainer.model.model.norm.weight)
    trainer.restore()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(before[name], tensor)


def test_rate_rises_and_falls_to_zero() -> None:
    recipe = Recipe()
    assert recipe.rate(0.0) < 0.05 * recipe.peak_rate
    assert recipe.rate(recipe.warmup) == pytest.approx(recipe.peak_rate)
    assert recipe.rate(1.0) == 0.0


def test_probe_sees_a_model_that_knows_nothing(small_tokenizer: Tokenizer) -> None:
    assert Probe(small_tokenizer, "cpu", 50).exact(Llama(TINY), torch.float32) < 0.2


def test_feed_reads_what_workers_write(small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    small_tokenizer.save(str(tmp_path / "tokenizer.json"))
    with Workers(tmp_path, tmp_path / "tokenizer.json", seed=1, lengths={256: (1, 16)}) as workers:
        batch = Feed(tmp_path, 256, 24, 0, pinned=False).next()
        assert workers.failed() == []
    assert batch.shape == (24, 3, 256)
    assert (batch[:, 1] != text.IGNORED).any(-1).all()


def test_feed_repeats_when_nothing_new_comes(tmp_path: Path) -> None:
    np.save(tmp_path / "256-00-000000.npy", np.ones((4, 3, 256), np.int16))
    feed = Feed(tmp_path, 256, 8, 0, pinned=False)
    assert feed.next().shape == (8, 3, 256)
    assert (feed.fresh_shards, feed.repeated_shards) == (1, 1)


def test_an_untrained_model_misses_every_goal(folder: Path) -> None:
    report = evaluate(folder, limit=6)
    assert set(report.missed) == set(GOALS)
    assert report.wrong
    assert report.asked["held_out_sums"] == 6


def test_an_unmeasured_goal_counts_as_missed() -> None:
    assert set(Report({}, {}, [], 0.0).missed) == set(GOALS)
    assert Report(dict.fromkeys(GOALS, 1.0), {}, [], 0.0).missed == []


def test_questions_are_held_out_and_the_same_each_time() -> None:
    first, again = questions(0, 40), questions(0, 40)
    assert [q.document for q in first] == [q.document for q in again]
    numbers = [
        [int(n) for n in q.document.messages[-1].content.split() if n.isdigit()]
        for q in first
        if q.kind == "held_out_sums"
    ]
    pairs = [tuple(sorted(n)) for n in numbers if len(n) == 2]
    assert pairs
    assert all(pair in arithmetic.HELD_OUT for pair in pairs)


def test_right_and_wrong_answers_are_told_apart() -> None:
    request = structured.Request(
        "", "", {"name": "Ada", "age": 3}, {"name": "string", "age": "integer"}, True
    )
    assert fits(request, '{"name": "Eve", "age": 4}')
    for bad in ('{"name": "Eve"}', '{"name": "Eve", "age": "4"}', "[1]", "no", '{"name": 1, "age": 4}'):  # fmt: skip  # noqa: E501
        assert not fits(request, bad)
    call = ToolCall("f", {"x": 1})
    assert calls(call, call.text())
    assert not calls(call, ToolCall("f", {"x": 2}).text())
    assert not calls(call, "f(x=1)")
    assert last_number("3 + 4 = 7.") == 7
    assert last_number("none") is None


def test_the_command_leaves_a_whole_folder(tmp_path: Path) -> None:
    recipe = Recipe(
        minutes=0.05,
        shape=TINY,
        rows=4,
        length=256,
        long_rows=1,
        long_every=4,
        workers=1,
        texts=1500,
        questions=8,
        compiled=False,
    )
    report = run(recipe, tmp_path)
    assert report is not None
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["steps"] >= 1
    assert record["held_out"]["scores"] == report.scores
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }


def test_a_chat_alternates() -> None:
    roles = [m.role for m in chat("a", "b", "c", system="s").messages]
    assert roles == ["system", "user", "assistant", "user"]
