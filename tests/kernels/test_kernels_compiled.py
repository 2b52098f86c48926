"""Chains that torch compiles mean what the plain ones do, whatever the number of rows."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from appliance.kernels.chains import PLAIN
from appliance.kernels.compiled import CompiledChains, lacking
from appliance.kernels.torch_ops import descending

CPU = torch.device("cpu")
VOCAB = 300
needs_compiler = pytest.mark.skipif(bool(lacking(CPU)), reason=f"no {lacking(CPU)} is installed")


class On(NamedTuple):
    device: torch.device
    made: CompiledChains


@pytest.fixture(
    scope="module",
    params=[pytest.param("cpu", marks=needs_compiler), pytest.param("cuda", marks=pytest.mark.gpu)],
)
def on(request: pytest.FixtureRequest) -> On:
    made, device = CompiledChains(PLAIN._fields), torch.device(request.param)
    with torch.inference_mode():
        made.build(device, VOCAB, lambda part: None)
    return On(device, made)


def given(name: str, rows: int, device: torch.device = CPU) -> list[torch.Tensor]:
    return [t.to(device) for t in _made_up(name, rows)]


def _made_up(name: str, rows: int) -> list[torch.Tensor]:
    """Arguments of a chain for so many rows, the first of which has few tokens left."""
    generator = torch.Generator().manual_seed(rows)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 3

    def number(below: int, *shape: int) -> torch.Tensor:
        return torch.randint(-below, below, shape, generator=generator)

    logits = random(rows + 3, VOCAB)
    logits[0, 5:] = -torch.inf
    at = torch.randperm(rows + 3, generator=generator)[:rows]
    if name == "draw":
        counters = number(1000, rows).abs().int()
        return [logits[:rows], random(rows).exp(), number(1 << 60, rows), counters]
    if name == "keep":
        k = torch.where(torch.arange(rows) % 2 == 0, VOCAB, 7).int()
        own = logits[:rows].contiguous()
        return [own, descending(own), k, random(rows).sigmoid(), random(rows).sigmoid() / 10]
    if name == "penalize":
        table, of = number(40, 9, VOCAB).abs().short(), number(4, rows).abs()
        return [logits, at, table, of, random(rows).exp(), random(rows), random(rows)]
    return [logits, at, number(1 << 31, rows, -(-VOCAB // 32)).int()]


def alone(name: str, arguments: list[torch.Tensor], row: int) -> list[torch.Tensor]:
    """Those of one of the rows."""
    if name in ("penalize", "allow"):
        table = arguments[2:3] if name == "penalize" else []
        by_row = [t[row : row + 1] for t in (arguments[1], *arguments[2 + len(table) :])]
        return [arguments[0], by_row[0], *table, *by_row[1:]]
    return [t[row : row + 1] for t in arguments]


@torch.inference_mode()
@pytest.mark.parametrize("name", PLAIN._fields)
def test_a_chain_gives_what_the_plain_one_gives_and_each_row_the_same_bits(
    on: On, name: str
) -> None:
    plain, own = PLAIN._asdict()[name], on.made.chains._asdict()[name]
    for rows in (1, 2, 3, 16, 63):
        arguments = given(name, rows, on.device)
        before = [t.clone() for t in arguments]
        found = own(*arguments)
        torch.testing.assert_close(found, plain(*arguments), rtol=1e-6, atol=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))
        for row in {0, rows // 2, rows - 1}:
            assert torch.equal(own(*alone(name, arguments, row))[0], found[row])
    assert on.made.graphs == len(PLAIN), "it was compiled anew"


def test_another_thread_finds_what_was_compiled(on: On) -> None:
    before, found = on.made.graphs, []

    def ask() -> None:
        with torch.inference_mode():
            found.append(on.made.chains.draw(*given("draw", 5, on.device)))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert torch.equal(found[0], PLAIN.draw(*given("draw", 5, on.device)))
    assert on.made.graphs == before


@torch.inference_mode()
def test_a_form_that_no_example_had_is_computed_and_told(
    on: On, caplog: pytest.LogCaptureFixture
) -> None:
    """By plain torch: compiling it would hold up everybody who waits for a token."""
    logits, *rest = given("draw", 4, on.device)
    before = on.made.graphs
    with caplog.at_level(logging.WARNING):
        found = on.made.chains.draw(logits[:, :200].contiguous(), *rest)
    assert torch.equal(found, PLAIN.draw(logits[:, :200], *rest))
    assert on.made.graphs == before + 1 and "draw was asked for" in caplog.text


def test_a_compiler_is_looked_for_by_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    empty = str(tmp_path)
    assert lacking(CPU, empty) == "g++" and lacking(torch.device("cuda"), empty) == "gcc"
    own = tmp_path / "own++"
    own.touch(0o700)
    monkeypatch.setenv("CXX", "own++ -O3")
    assert lacking(CPU, empty) == ""
    monkeypatch.setenv("CC", "absent")
    assert lacking(torch.device("cuda")) == "gcc"
