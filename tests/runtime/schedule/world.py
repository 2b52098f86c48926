"""World: the real Loop and Scheduler on the oracle worker, with everything that can happen to them,
checked.

Operations: submit, iterate (one turn of the loop), abort, flush, reconnect, die, poison. After each
`check` compares all state with what must hold; every delta is compared with the truth as it comes.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from frontends import Frontends
from oracle import Oracle, OracleError, OracleFlight, logprob_of, truth

from appliance.runtime.config import ScheduleConfig
from appliance.runtime.schedule.loop import Loop
from appliance.runtime.schedule.scheduler import Scheduler
from appliance.runtime.schedule.settle import Next
from appliance.runtime.wire.delta import TokenDelta
from appliance.runtime.wire.request import (
    Abort,
    FlushCache,
    Sampling,
    ToEngine,
    TokenRequest,
    ids_to_bytes,
)
from appliance.runtime.wire.step import Step, StepResult

VOCAB = 61
PATIENCE = 40
"""Turns without a prompt token computed or a token generated after which nothing goes on."""


@dataclass(frozen=True)
class Shape:
    config: ScheduleConfig
    pages: int
    context: int
    max_running: int


@dataclass
class Life:
    """What the frontend knows of a request."""

    wire: TokenRequest
    ids: list[int]
    finish: str
    emitted: list[int] = field(default_factory=list)
    crashes: int = 0
    poisoned: bool = False


def random_shape(rng: random.Random) -> Shape:
    page = rng.choice([1, 2, 4, 16])
    pages = rng.choice([4, 16, 64])
    config = ScheduleConfig(
        policy=rng.choice(["fcfs", "lpm", "dfs-weight", "lof", "random"]),
        page_size=page,
        chunk=rng.choice([0, 1, page, 3 * page, 64]),
        max_prefill=rng.choice([8, 64, 16384]),
        mixed_chunk=rng.random() < 0.4,
        mixed_tokens=rng.choice([0, 0, 6, 40]),
        max_running=8,
        conservativeness=rng.choice([0.0, 0.3, 1.0, 2.0]),
        prefix_cache=rng.random() < 0.75,
        depth=rng.choice([0, 1, 1]),
        retract_every=rng.choice([0, 0, 0, 1, 7]),
        share_from=rng.choice([0, 1, 3]),
        beside_rows=rng.choice([0, 0, 1, 2]),
        beside_filled=rng.choice([0.0, 0.0, 0.6]),
    )
    context = rng.choice([24, 48, pages * page, 2 * pages * page])
    return Shape(config, pages, max(context, 6), rng.choice([1, 3, 8]))


def as_deltas(next: Next) -> list[TokenDelta]:
    columns = (part.tolist() for part in (next.rids, next.indices, next.ids))
    return [TokenDelta(rid, index, (id,)) for rid, index, id in zip(*columns, strict=True)]


def settled(scheduler: Scheduler, step: Step, result: StepResult) -> list[TokenDelta]:
    """All that came of a step."""
    next, deltas = scheduler.settle(step, result)
    return [*as_deltas(next), *deltas]


class Overheard(Scheduler):
    """A scheduler whose every delta is told to `hear`, before the desk drops what is nobody's, and
    every step that is to settle to `watch`."""

    hear: Callable[[list[TokenDelta]], None]
    watch: Callable[[Step], None]
    _settling = False

    def settle(self, step: Step, result: StepResult) -> tuple[Next, list[TokenDelta]]:
        self.watch(step)
        self._settling = True  # what it gives has the notices in it
        next, deltas = super().settle(step, result)
        self._settling = False
        self.hear([*as_deltas(next), *deltas])
        return next, deltas

    def notices(self) -> list[TokenDelta]:
        notices = super().notices()
        if not self._settling:
            self.hear(notices)
        return notices


class World:
    """late: what is asked of the engine waits at its door for a while, else it is taken at once."""

    def __init__(self, shape: Shape, seed: int = 0, late: bool = False) -> None:
        self.shape = shape
        self.rng = random.Random(seed)
        self.live: dict[int, Life] = {}
        self.done: dict[int, Life] = {}
        self.namespaces: dict[int, str] = {}
        self.poisoned: set[int] = set()
        self.families = [
            [self.rng.randrange(VOCAB) for _ in range(shape.context)] for _ in range(3)
        ]
        self.transcripts: deque[list[int]] = deque(maxlen=8)
        self.next_rid = 1
        self.turns = 0
        self.errors = 0
        self.finished = 0
        self.retractions = 0
        self._late = late
        self._now = 0.0
        self._quiet = 0
        self._progress = 0
        self._born()

    def _born(self) -> None:
        shape = self.shape
        self.scheduler = Overheard(
            shape.config, shape.pages, shape.context, shape.max_running, VOCAB
        )
        self.scheduler.hear, self.scheduler.watch = self._hear, self._in_order
        self.oracle = Oracle(
            shape.pages, shape.config.page_size, shape.max_running, VOCAB, self.namespaces
        )
        self.oracle.poisoned = self.poisoned
        self._frontends = Frontends(self.rng, self._late, lambda rid: self.live.pop(rid, None))
        self.loop = Loop(
            self.scheduler, self.oracle, self._frontends, shape.config.depth, clock=self._clock
        )

    @property
    def flying(self) -> list[OracleFlight]:
        return [f for f in self.oracle.flying if not f.step.beside]

    @property
    def beside(self) -> list[OracleFlight]:
        return [f for f in self.oracle.flying if f.step.beside]

    def _clock(self) -> float:
        """Time passes whenever somebody looks, so that some steps take long enough to wait for."""
        self._now += 0.0005 * self.rng.random()
        return self._now

    def _ask(self, message: ToEngine) -> None:
        self._frontends.ask(message)
        self._take_unless_late()

    def _take_unless_late(self) -> None:
        if not self._late:
            self.loop._drain(idle=False)

    def _in_order(self, step: Step) -> None:
        """Of the steps in the air, `step` is one that may settle now."""
        for other in (flight.step for flight in self.oracle.flying):
            both = other.prefill_rows and step.prefill_rows
            if other.id < step.id and (both or other.beside == step.beside):
                raise OracleError(f"step {step.id} settles before {other.id}")

    def _hear(self, deltas: list[TokenDelta]) -> None:
        self.collect(self._frontends.hear(deltas))

    def submit(
        self, prompt: list[int], sampling: Sampling, key: str = "", priority: int = 0
    ) -> int:
        rid, self.next_rid = self.next_rid, self.next_rid + 1
        wire = TokenRequest(
            rid=rid,
            prompt=ids_to_bytes(prompt),
            sampling=sampling,
            priority=priority,
            arrival=float(rid),
            cache_key=key,
        )
        ids, finish = truth(wire, self.shape.context, VOCAB) if prompt else ([], "error")
        self.namespaces[rid] = key
        self.live[rid] = Life(wire, ids, finish)
        self._ask(wire)
        return rid

    def submit_random(self) -> int:
        rng = self.rng
        prompt = self._random_prompt()
        stops = rng.choice([0, 0, 2, 6, 12])
        sampling = Sampling(
            max_tokens=rng.choice([0, 1, 2, 5, 12, 40]),
            seed=rng.randrange(4),
            min_tokens=rng.choice([0, 0, 3]),
            stop_ids=tuple(rng.sample(range(VOCAB), stops)),
            logprobs=rng.choice([-1, -1, 0, 1]),
            prompt_logprobs=rng.choice([-1, -1, -1, -1, 0, 1]),
            frequency_penalty=rng.choice([0.0, 0.0, 0.0, 0.5]),
        )
        key = rng.choice(["", "", "", "other"])
        return self.submit(prompt, sampling, key, rng.choice([0, 0, 0, 1]))

    def _random_prompt(self) -> list[int]:
        rng = self.rng
        if self.transcripts and rng.random() < 0.3:
            head = list(rng.choice(self.transcripts))
        else:
            room = min(self.shape.context, self.shape.pages * self.shape.config.page_size)
            most = self.shape.context + 2 if rng.random() < 0.05 else min(rng.choice([8, 40]), room)
            head = rng.choice(self.families)[: rng.randrange(most)]
        return head + [rng.randrange(VOCAB) for _ in range(rng.randrange(4))]

    def iterate(self) -> None:
        self.turns += 1
        self.loop.turn()
        self._frontends.end_turn()
        self._check_progress()

    def by_hand(self, step: Step) -> None:
        """A step of `scheduler.next_step`, without the loop."""
        flight = self.oracle.launch(step)
        flight.sample(None)
        self.scheduler.settle(step, flight.wait())
        self._frontends.forget()

    def collect(self, deltas: list[TokenDelta]) -> None:
        for delta in deltas:
            life = self.live.get(delta.rid)
            assert life is not None, f"a delta of request {delta.rid}, which has ended"
            assert delta.index == len(life.emitted), "indices are not contiguous"
            self._check_extras(life, delta)
            life.emitted += delta.ids
            assert life.emitted == life.ids[: len(life.emitted)], (
                f"request {delta.rid}: {life.emitted} is not the beginning of {life.ids}"
            )
            if delta.finish:
                self._check_end(life, delta)
                self.done[delta.rid] = self.live.pop(delta.rid)
                self.finished += 1
                self.transcripts.append([*self._prompt(life), *life.emitted])
            else:
                assert delta.ids, "an empty delta that ends nothing"

    def _prompt(self, life: Life) -> list[int]:
        return [int(i) for i in memoryview(life.wire.prompt).cast("i")] if life.wire.prompt else []

    def _check_extras(self, life: Life, delta: TokenDelta) -> None:
        sampling, prompt = life.wire.sampling, self._prompt(life)
        if delta.finish == "error":
            return
        assert (delta.cached >= 0) == (delta.index == 0), "`cached` belongs to the first delta"
        assert delta.cached < max(1, len(prompt))
        wanted = len(delta.ids) if sampling.logprobs >= 0 else 0
        assert len(delta.logprobs) == wanted
        for token, entry in zip(delta.ids, delta.logprobs, strict=False):
            assert entry.id == token and abs(entry.logprob - logprob_of(token)) < 1e-5
            assert len(entry.top_ids) == sampling.logprobs
        if sampling.prompt_logprobs >= 0 and delta.index == 0:
            assert [e.id for e in delta.prompt_logprobs] == prompt
            assert delta.prompt_logprobs[0].logprob == 0.0
            for entry in delta.prompt_logprobs[1:]:
                assert abs(entry.logprob - logprob_of(entry.id)) < 1e-5
                assert len(entry.top_ids) == sampling.prompt_logprobs
        else:
            assert not delta.prompt_logprobs

    def _check_end(self, life: Life, delta: TokenDelta) -> None:
        page, total = self.shape.config.page_size, self.shape.pages
        length = len(self._prompt(life)) + len(life.emitted)
        if delta.finish == "error":
            self.errors += 1
            legal = (
                life.poisoned
                or life.crashes >= 2
                or not life.wire.prompt
                or length + 1 > self.shape.context
                or -(-length // page) > total
            )
            assert legal, f"request {delta.rid} ended for nothing: {delta.error}"
            assert delta.error
            return
        assert delta.finish == life.finish and life.emitted == life.ids
        assert (delta.matched in life.wire.sampling.stop_ids) == (delta.finish == "stop")

    def abort(self, rid: int) -> None:
        self._ask(Abort(rid))

    def flush(self) -> None:
        self._ask(FlushCache())

    def poison(self, rid: int) -> None:
        self.poisoned.add(rid)
        self.live[rid].poisoned = True

    def die(self) -> None:
        """The engine is gone with all it had in the air; the frontend sends everything again."""
        self.retractions += self.scheduler.stats().retractions
        self._born()
        self._progress = 0
        order = list(self.live.values())
        self.rng.shuffle(order)
        for life in order:
            life.crashes += 1
            self._ask(self._again(life))

    def reconnect(self) -> None:
        """The frontend's connection is lost, and it sends everything again by another one; the
        engine goes on. What was said of its requests meanwhile is said again."""
        self._frontends.lose()
        self._frontends.return_with([self._again(life) for life in self.live.values()])
        self._take_unless_late()

    def _again(self, life: Life) -> TokenRequest:
        life.wire = msgspec.structs.replace(
            life.wire, output=ids_to_bytes(life.emitted), crashes=life.crashes
        )
        return life.wire

    def drain(self) -> None:
        """Runs until nothing is left; then nothing may be held."""
        self.drain_requests()
        assert self.scheduler.cache.available == self.shape.pages
        self.scheduler.flush_cache()
        self.check()
        assert self.scheduler.cache.evictable == 0 and self.scheduler.cache.whole

    def drain_requests(self) -> None:
        work = sum(
            len(self._prompt(life)) + len(life.ids) - len(life.emitted)
            for life in self.live.values()
        )
        most = self.turns + 200 + 30 * work * max(1, len(self.live))
        while self.live or self.flying or self.beside or not self.scheduler.idle:
            self.iterate()
            self.check()
            assert self.turns < most, "work that never ends"

    def check(self) -> None:
        self.scheduler.check()
        assert len(self.flying) <= self.shape.config.depth and len(self.beside) <= 2
        assert self.scheduler.in_air == len(self.flying) + len(self.beside)

    def _check_progress(self) -> None:
        stats = self.scheduler.stats()
        progress = stats.prompt_tokens + stats.generated_tokens + self.finished
        self._quiet = 0 if progress != self._progress or not self.live else self._quiet + 1
        self._progress = progress
        assert self._quiet < PATIENCE, "nothing goes on"

    def random_operation(self) -> None:
        rng, live = self.rng, len(self.live)
        dice = rng.random()
        if dice < (0.25 if live < 12 else 0.02):
            self.submit_random()
        elif dice < 0.29 and live:
            self.abort(rng.choice(list(self.live)))
        elif dice < 0.295:
            self.flush()
        elif dice < 0.297 and live:
            self.poison(rng.choice(list(self.live)))
        elif dice < 0.299:
            self.die()
        elif dice < 0.304:
            self.reconnect()
        else:
            self.iterate()
        self.check()
