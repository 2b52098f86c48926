"""Chains compiled by torch (`torch.compile`): each becomes one or two kernels, made at start.

A chain is compiled once for any number of rows, so that nothing is compiled while somebody waits
and a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor

from appliance.kernels.chains import PLAIN, Chains

log = logging.getLogger(__name__)

_ROWS = 2
"""Of the examples that a chain is compiled with."""


class Compiled:
    """A function of tensors whose first dimensions are counts of rows.

    graphs: it was compiled as; more than one after `build` were asked for while serving, in a form
    that no example had: those are computed by plain torch, and told.
    """

    def __init__(self, plain: Callable[..., Tensor]) -> None:
        function = cast(FunctionType, plain)
        self._name, self.graphs, self._built = function.__name__, 0, False
        # torch keeps what it compiled by code object; this one is ours alone
        own = FunctionType(function.__code__.replace(), function.__globals__, self._name)
        # not dynamic: only the rows are, though a model of another vocabulary came before
        self._run = torch.compile(own, backend=self._compile, dynamic=False)

    def _compile(self, graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        if self._built:
            log.warning("%s was asked for in a form that is not compiled", self._name)
            return graph.forward
        return cast(Callable[..., Any], torch._inductor.compile(graph, examples))

    def build(self, examples: list[Tensor]) -> None:
        """RuntimeError and others of `ops.compile_failures` when it cannot be compiled."""
        for tensor in examples:
            torch._dynamo.decorators.mark_unbacked(tensor, 0)  # one row is as good as many
        self._run(*examples)
        if self.graphs != 1:
            raise RuntimeError(f"{self._name} was compiled in {self.graphs} parts")
        self._built = True

    def __call__(self, *given: Tensor) -> Tensor:
        return self._run(*given)


class CompiledChains:
    """used: names of the chains that are to be compiled; the others stay plain."""

    def __init__(self, used: Collection[str]) -> None:
        plain = PLAIN._asdict()
        self._functions = {name: Compiled(plain[name]) for name in used}
        self.chains: Chains = PLAIN._replace(**self._functions)

    @property
    def graphs(self) -> int:
        """As many as there are chains, unless one was needed in another form."""
        return sum(function.graphs for function in self._functions.values())

    def build(self, device: torch.device, vocab: int, progress: Callable[[float], None]) -> None:
        """In the mode and with the number of threads they will run with. Errors as in
        Compiled.build."""
        torch._inductor.config.compile_threads = 1  # no processes of its own beside an engine
        for done, (name, function) in enumerate(self._functions.items()):
            function.build(_examples(name, device, vocab))
            progress((done + 1) / len(self._functions))


def lacking(device: torch.device, path: str | None = None) -> str:
    """The compiler that torch.compile needs for a device and does not find; empty: none."""
    if device.type == "cuda":
        return "" if any(shutil.which(c, path=path) for c in _told("CC", "gcc", "clang")) else "gcc"
    return "" if any(shutil.which(c, path=path) for c in _told("CXX", "g++", "clang++")) else "g++"


def _told(variable: str, *known: str) -> tuple[str, ...]:
    given = os.environ.get(variable, "").split()
    return (given[0],) if given else known


def _examples(name: str, device: torch.device, vocab: int) -> list[Tensor]:
    def some(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(_ROWS, *shape, dtype=dtype, device=device)

    logits, at, rows = some(vocab), some(dtype=torch.int64), some(dtype=torch.int64)
    known: dict[str, list[Tensor]] = {
        "draw": [logits, some(), rows, some(dtype=torch.int32)],
        "keep": [logits, some(vocab), some(dtype=torch.int32), some(), some()],
        "penalize": [
            logits, at, some(vocab, dtype=torch.int16), rows, some(), some(), some(),
        ],
        "allow": [logits, at, some(-(-vocab // 32), dtype=torch.int32)],
    }  # fmt: skip
    return known[name]
