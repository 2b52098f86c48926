"""An engine in a thread whose next token is a pure function of the ids before it.

It speaks the real protocol through the real EngineDoor, can die and come back, wait, and fail.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from appliance.runtime.wire.channel import EngineDoor
from appliance.runtime.wire.codec import VERSION
from appliance.runtime.wire.delta import Admitted, Deltas, Logprob, StepStats, TokenDelta, Welcome
from appliance.runtime.wire.request import Abort, FlushCache, TokenRequest, ids_from_bytes

LOW, HIGH = 5, 300


def next_token(ids: list[int]) -> int:
    value = 17
    for id in ids[-8:]:
        value = (value * 31 + id) % 1_000_003
    return LOW + (value + len(ids)) % (HIGH - LOW)


def continuation(prompt: list[int], n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(next_token(ids))
    return ids[len(prompt) :]


class Row:
    def __init__(self, peer: int, request: TokenRequest) -> None:
        self.peer, self.request = peer, request
        self.prompt = ids_from_bytes(request.prompt).tolist()
        self.output = ids_from_bytes(request.output).tolist()
        self.sent = len(self.output)
        self.first = True


class FakeEngine:
    """script: text to answer with (ids), instead of the pure function. chunk: tokens of a delta.

    hold: while set, requests are taken and nothing is answered. budget: tokens in all before it
    stops answering (as a hang).
    """

    def __init__(self, path: Path, *, context: int = 512, total_tokens: int = 4096) -> None:
        self.path, self.context, self.total_tokens = path, context, total_tokens
        self.generation = 0
        self.script: list[int] | None = None
        self.chunk = 1
        self.stop_id = 1
        self.hold = threading.Event()
        self.budget: int | None = None
        self.error = ""
        self.vector: Callable[[list[int]], list[float]] | None = None
        """What it tells of a prompt, instead of a sequence that grows with it."""
        self.repeat = False
        self.cached = 0
        self.requests: list[TokenRequest] = []
        self.aborts: list[int] = []
        self.flushes = 0
        self.seen = threading.Condition()
        self.stats = StepStats()
        self._rows: dict[int, Row] = {}
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._goodbye = False

    def start(self) -> FakeEngine:
        self._stopping.clear()
        self._rows.clear()
        self.generation += 1
        welcome = Welcome(
            VERSION, self.generation, self.context, self.total_tokens, 16, 64, 300, 1234
        )
        door = EngineDoor(self.path, welcome)
        self._thread = threading.Thread(target=self._run, args=(door,), daemon=True)
        self._thread.start()
        return self

    def die(self, goodbye: bool = False) -> None:
        """Closes every connection at once, in the middle of whatever it was doing.

        goodbye: says first that it does so on purpose.
        """
        self._goodbye = goodbye
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10)
        self._thread = None
        self.path.unlink(missing_ok=True)

    def wait(self, condition: Callable[[], bool], timeout: float = 20.0) -> None:
        with self.seen:
            assert self.seen.wait_for(condition, timeout), "the engine never saw it"

    def _run(self, door: EngineDoor) -> None:
        try:
            while not self._stopping.is_set():
                idle = not self._rows or self.hold.is_set() or self.budget == 0
                for peer, message in door.receive(0.02 if idle else 0.0):
                    self._receive(door, peer, message)
                if not self.hold.is_set() and self._rows:
                    self._step(door)
                    with self.seen:
                        self.seen.notify_all()
        finally:
            if self._goodbye:
                door.leave()
            door.close()

    def _receive(self, door: EngineDoor, peer: int, message: object) -> None:
        with self.seen:
            if isinstance(message, TokenRequest):
                self.requests.append(message)
                self._rows[message.rid] = Row(peer, message)
                door.send(peer, Admitted(rids=(message.rid,), time=time.monotonic()))
            elif isinstance(message, Abort):
                self.aborts.append(message.rid)
                self._rows.pop(message.rid, None)
            elif isinstance(message, FlushCache):
                self.flushes += 1
            elif message is None:
                for rid in [r for r, row in self._rows.items() if row.peer == peer]:
                    del self._rows[rid]
            self.seen.notify_all()

    def _step(self, door: EngineDoor) -> None:
        by_peer: dict[int, list[TokenDelta]] = {}
        for rid, row in list(self._rows.items()):
            delta = self._next(row)
            if delta is None:
                continue
            by_peer.setdefault(row.peer, []).append(delta)
            if self.repeat and not delta.finish:
                by_peer[row.peer].append(delta)
            if delta.finish:
                del self._rows[rid]
        for peer, deltas in by_peer.items():
            door.send(peer, Deltas(tuple(deltas), self.stats))

    def _next(self, row: Row) -> TokenDelta | None:
        sampling, rid = row.request.sampling, row.request.rid
        index = len(row.output)
        if self.error:
            return TokenDelta(rid=rid, index=index, ids=(), finish="error", error=self.error)
        if sampling.pool:
            pooled = np.arange(1, 9, dtype=np.float32) * len(row.prompt)
            if sampling.pool == "labels":
                told = [(i * 7 + len(row.prompt)) % 90 / 100 + 0.05 for i in sampling.labels]
                pooled = np.log(np.array(told, dtype=np.float32))
            if self.vector is not None:
                pooled = np.array(self.vector(row.prompt), dtype=np.float32)
            return TokenDelta(rid, 0, (), "length", cached=0, pooled=pooled.tobytes())
        ids: list[int] = []
        finish, matched = "", -1
        while len(ids) < self.chunk and not finish:
            if self.budget is not None:
                if self.budget <= 0:
                    break
                self.budget -= 1
            at = len(row.output)
            if self.script is not None:
                id = self.script[at] if at < len(self.script) else self.stop_id
            else:
                id = next_token(row.prompt + row.output)
            row.output.append(id)
            ids.append(id)
            if id in sampling.stop_ids:
                finish, matched = "stop", id
            elif len(row.output) >= sampling.max_tokens:
                finish = "length"
        if not ids:
            return None
        first, row.first = row.first, False
        return TokenDelta(
            rid=rid,
            index=index,
            ids=tuple(ids),
            finish=finish,
            matched=matched,
            cached=self.cached if first else -1,
            logprobs=tuple(_logprob(i, sampling.logprobs) for i in ids)
            if sampling.logprobs >= 0
            else (),
            prompt_logprobs=tuple(_logprob(i, sampling.prompt_logprobs) for i in row.prompt)
            if first and sampling.prompt_logprobs >= 0
            else (),
        )


def _logprob(id: int, n: int) -> Logprob:
    """The token itself is the likeliest, so that every answer is greedy."""
    ids = tuple((id + k) % 300 for k in range(n))
    return Logprob(id, -0.25, ids, tuple(-0.25 - k for k in range(n)))
