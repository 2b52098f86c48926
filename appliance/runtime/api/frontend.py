"""Frontend: owns every live request of this process, sends it to an engine, hands its text on.

It holds the truth of a request (prompt and emitted ids), so the death of an engine is a pause: when
one is there again, its requests are sent again with what was emitted, and the answers go on.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from appliance import status
from appliance.errors import RequestError
from appliance.runtime.api.answer import Answer
from appliance.runtime.api.callers import ANYBODY, Caller
from appliance.runtime.api.engines import EnginePeer
from appliance.runtime.api.live import Live, client_rows, request_row
from appliance.runtime.api.pace import Pace
from appliance.runtime.api.router import choose
from appliance.runtime.api.series import Series
from appliance.runtime.api.state import RunStateFile, refusal
from appliance.runtime.wire.delta import Admitted, Deltas, StepStats, ToFrontend, TokenDelta
from appliance.runtime.wire.request import Abort, TokenRequest
from appliance.runtime.wire.text import TextDelta, TextRequest, TextRoom

MAX_CRASHES = 2
ROWS_SHOWN = 200
FINISHED_SHOWN = 50

log = logging.getLogger(__name__)


class Frontend:
    def __init__(
        self,
        text: TextRoom,
        engines: Sequence[EnginePeer],
        state: RunStateFile,
        series: Series,
        *,
        index: int,
        context: int,
        max_queue: int,
        keep_alive_s: float = 0.0,
    ) -> None:
        """context: most tokens of prompt and output while no engine has said so itself.

        keep_alive_s: seconds of silence before a comment is sent on a chat stream; 0: never.
        """
        self.text, self.engines, self.state, self.series = text, engines, state, series
        self.index = index
        self.draining = False
        self.messages = 0
        """Messages from engines; a sign of life."""
        self.max_queue, self.keep_alive_s = max_queue, keep_alive_s
        self._context = context
        self._live: dict[int, Live] = {}
        self._claimed = 0
        self._pace = Pace()
        self._tasks: list[asyncio.Task[None]] = []
        self._finished: deque[status.RequestRow] = deque(maxlen=FINISHED_SHOWN)
        start = (index + 1) << 52 | (int(time.time() * 10) & 0xFFFFFF) << 28
        self._rids = itertools.count(start)

    # Life

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(e.run(self._receive, self._up, self._down, self._waiting))
            for e in self.engines
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def live(self) -> int:
        return len(self._live)

    def busy(self, above: int) -> bool:
        """A request of a priority above `above` is live."""
        return any(live.request.priority > above for live in self._live.values())

    def starved(self, above: int, seconds: float) -> bool:
        """A request of a priority above `above` has waited longer than this for its pages, of an
        engine that is there."""
        before = time.monotonic() - seconds
        return any(
            live.first_at is None and not live.in_flight and live.request.arrival < before
            for live in self._live.values()
            if live.request.priority > above and live.engine.connected
        )

    @property
    def reachable(self) -> bool:
        """An engine is there, or the run was ready and one is being started again."""
        return any(e.connected for e in self.engines) or self.state.read().reached_ready

    @property
    def context(self) -> int:
        known = [e.welcome.context for e in self.engines if e.welcome is not None]
        return min([self._context, *known])

    # The way in

    def check_open(self, sequences: int) -> None:
        """RequestError 503 or 429 when `sequences` more cannot be taken now."""
        refused = refusal(self.state.read(), self.draining, self.reachable)
        if refused is not None:
            raise refused
        if len(self._live) + self._claimed + sequences > self.max_queue:
            raise RequestError(
                f"{len(self._live):,} requests are live and at most {self.max_queue:,} are held. "
                "Try again a little later.",
                status=429,
                type="rate_limit_error",
                code="queue_full",
                retry_after_s=self._pace.wait_for_requests(
                    time.monotonic(), len(self._live) + self._claimed + sequences - self.max_queue
                ),
            )

    def mint(self, n: int) -> tuple[int, ...]:
        return tuple(itertools.islice(self._rids, n))

    async def submit(
        self,
        asked: Sequence[TextRequest],
        answer: Answer,
        names: Sequence[str],
        client: str,
        caller: Caller = ANYBODY,
    ) -> list[TokenRequest]:
        """Tokenizes and sends. Choices are numbered through: prompt by prompt, n by n.

        names: of each request. client: the program that asks; caller: on whose account.
        Returns the token requests in the order of choices; RequestError before anything is sent.
        """
        count = sum(len(a.rids) for a in asked)
        self.check_open(count)
        caller.check_tokens(0, self._pace)
        self._claimed += count
        try:
            made: list[tuple[TextRequest, TokenRequest, str]] = []
            for request, name in zip(asked, names, strict=True):
                if caller.namespace:
                    key = caller.cache_key(request.cache_key)
                    request = msgspec.structs.replace(request, cache_key=key)
                if caller.priority is not None:
                    request = msgspec.structs.replace(request, priority=caller.priority)
                tokens = await self.text.tokenize(request, self.context)
                self._check_capacity(tokens[0], request.param)
                made += [(request, t, name) for t in tokens]
            tokens_in_all = sum(len(t.prompt) // 4 for _, t, _ in made)
            caller.check_tokens(tokens_in_all, self._pace, asked[0].param)
        finally:
            self._claimed -= count
        for choice, (request, tokens_, name) in enumerate(made):
            engine = self.engines[choose(self.engines)]
            stream = self.text.stream(request, tokens_)
            live = Live(tokens_, stream, engine, answer, choice, name, client, caller)
            self._live[tokens_.rid] = live
            engine.live_tokens += live.prompt_tokens
            caller.hold(live.prompt_tokens)
            engine.send(tokens_)
        return [t for _, t, _ in made]

    def cancel(self, rids: Iterable[int]) -> None:
        """The caller has gone: the engine is told, nothing more is handed on."""
        gone = [live for live in map(self._live.get, rids) if live is not None]
        for live in gone:
            self._forget(live, "abort")
            live.engine.send(Abort(rid=live.request.rid))
            self.series.finished.add(1.0, self.series.model, "abort")
        if gone:
            log.info("%s: the client left, %d sequences aborted", gone[0].name, len(gone))

    def cancel_named(self, name: str) -> None:
        """The operator ends a request; its client is told so."""
        for live in [live for live in self._live.values() if live.name == name]:
            live.engine.send(Abort(rid=live.request.rid))
            self._fail(live, _cancelled(), "abort")
            log.info("%s: cancelled by the operator", name)

    def abort(self, namespace: str, name: str) -> None:
        """A caller ends requests of theirs: those of this name, or all of them when it is empty.
        Lines of batches end with their batch."""
        for live in list(self._live.values()):
            if live.caller.namespace != namespace or name not in ("", live.name):
                continue
            if not name and live.caller.priority is not None:
                continue
            live.engine.send(Abort(rid=live.request.rid))
            if live.answer.takes_aborts:
                self._forget(live, "abort")
                self.series.finished.add(1.0, self.series.model, "abort")
                live.answer.put(live.choice, TextDelta(live.request.rid, "", finish="abort"))
            else:
                self._fail(live, _cancelled())

    def _check_capacity(self, tokens: TokenRequest, param: str) -> None:
        pools = [e.welcome.total_tokens for e in self.engines if e.welcome is not None]
        length = len(tokens.prompt) // 4
        if pools and length + 1 > max(pools):
            raise RequestError(
                f"The prompt has {length:,} tokens; the page pool of this machine holds "
                f"{max(pools):,} in all. Shorten it by {length + 1 - max(pools):,}.",
                code="request_exceeds_capacity",
                param=param,
            )

    # The way home

    def _receive(self, engine: EnginePeer, message: ToFrontend) -> None:
        self.messages += 1
        if isinstance(message, Deltas):
            now = time.monotonic()
            for delta in message.each():
                self._take(delta, now)
            if message.stats is not None:
                self._take_stats(engine, message.stats)
        elif isinstance(message, Admitted):
            for rid in message.rids:
                live = self._live.get(rid)
                if live is not None:
                    self._admit(live, message.time)

    def _admit(self, live: Live, at: float) -> None:
        live.in_flight = True
        if live.admitted_at is None:
            live.admitted_at = at
            self.series.queue.observe(max(0.0, at - live.request.arrival), self.series.model)

    def _take(self, delta: TokenDelta, now: float) -> None:
        live = self._live.get(delta.rid)
        if live is None:
            return
        known = len(live.output)
        if delta.index != known:
            if delta.index > known:
                self._fail(live, _lost_tokens(delta.index - known))
                live.engine.send(Abort(rid=delta.rid))
                return
            delta = without_first(delta, known - delta.index)
        live.output.extend(delta.ids)
        live.engine.live_tokens += len(delta.ids)
        live.caller.hold(len(delta.ids))
        try:
            text = live.stream.feed(delta)
        except Exception:
            log.exception("text of %s", live.name)
            self._fail(live, _text_fault())
            live.engine.send(Abort(rid=delta.rid))
            return
        if delta.ids:
            self._measure(live, len(delta.ids), delta.cached, now)
        elif delta.pooled:
            self._count_prompt(live, delta.cached)
        if text.finish:
            if not delta.finish:
                live.engine.send(Abort(rid=delta.rid))
            self._finish(live, text, now)
        live.answer.put(live.choice, text)

    def _measure(self, live: Live, tokens: int, cached: int, now: float) -> None:
        series, model = self.series, self.series.model
        series.generated.add(tokens, model)
        if live.first_at is not None:
            series.itl.observe((now - live.last_at) / tokens, model, count=tokens)
            live.last_at = now
            return
        if not live.in_flight:
            self._admit(live, now)
        live.first_at = live.last_at = now
        series.ttft.observe(now - live.request.arrival, model)
        if live.admitted_at is not None:
            series.prefill.observe(max(0.0, now - live.admitted_at), model)
        self._count_prompt(live, cached)

    def _count_prompt(self, live: Live, cached: int) -> None:
        self.series.prompt_tokens.add(live.prompt_tokens, self.series.model)
        if cached > 0:
            live.cached = cached
            self.series.cached_tokens.add(cached, self.series.model)

    def _finish(self, live: Live, text: TextDelta, now: float) -> None:
        self._forget(live, text.finish)
        series, model, tokens = self.series, self.series.model, len(live.output)
        series.finished.add(1.0, model, text.finish)
        series.e2e.observe(now - live.request.arrival, model)
        series.prompt_length.observe(live.prompt_tokens, model)
        series.output_length.observe(tokens, model)
        if text.finish == "length" and live.prompt_tokens + tokens >= self.context:
            series.cut.add(1.0, model)
        if live.first_at is not None:
            series.decode.observe(now - live.first_at, model)
            if tokens > 1:
                series.tpot.observe((now - live.first_at) / (tokens - 1), model)

    def _fail(self, live: Live, error: RequestError, reason: str = "error") -> None:
        self._forget(live, error.code)
        self.series.finished.add(1.0, self.series.model, reason)
        live.answer.fail(error)

    def _forget(self, live: Live, finish: str) -> None:
        del self._live[live.request.rid]
        row = request_row(live, time.monotonic())
        row = msgspec.structs.replace(row, phase="done", finish=finish)
        self._finished.appendleft(row)
        live.answer.ended.append(row)
        tokens = live.prompt_tokens + len(live.output)
        live.engine.live_tokens -= tokens
        live.caller.hold(-tokens)
        self._pace.ended(time.monotonic(), tokens)

    def _take_stats(self, engine: EnginePeer, stats: StepStats) -> None:
        old, engine.stats = engine.stats, stats
        if self.index == 0 and old is not None and stats.steps > old.steps:
            steps = stats.steps - old.steps
            tokens = stats.prompt_tokens + stats.generated_tokens
            tokens -= old.prompt_tokens + old.generated_tokens
            self.series.step_tokens.observe(tokens / steps, self.series.model, count=steps)

    # An engine comes and goes

    def _of(self, engine: EnginePeer) -> list[Live]:
        return [live for live in self._live.values() if live.engine is engine]

    def _up(self, engine: EnginePeer) -> None:
        """Sends everything this engine should have; an engine that has just come has nothing."""
        for live in self._of(engine):
            request = live.request
            if live.output or live.crashes:
                self.series.replays.add(1.0, self.series.model)
                request = _again(live)
            engine.send(request)

    def _down(self, engine: EnginePeer) -> None:
        for live in self._of(engine):
            if live.in_flight:
                live.in_flight = False
                live.crashes += not engine.left
                if live.crashes >= MAX_CRASHES:
                    self._fail(live, _quarantined())

    def _waiting(self, engine: EnginePeer) -> None:
        state = self.state.read()
        if state.state == "failed":
            refused = refusal(state, False, False)
            assert refused is not None
            for live in self._of(engine):
                self._fail(live, refused)

    # What others see

    def rows(self) -> list[status.RequestRow]:
        now = time.monotonic()
        newest = itertools.islice(reversed(self._live.values()), ROWS_SHOWN)
        return [request_row(live, now) for live in newest]

    def client_rows(self) -> list[status.ClientRow]:
        return client_rows(self._live.values(), time.monotonic())

    def finished_rows(self) -> list[status.RequestRow]:
        return list(self._finished)

    def states(self) -> list[status.EngineState]:
        return [e.state() for e in self.engines]


def without_first(delta: TokenDelta, n: int) -> TokenDelta:
    """The delta without its first n tokens, which are known already (a replay may repeat them)."""
    return msgspec.structs.replace(
        delta,
        index=delta.index + min(n, len(delta.ids)),
        ids=delta.ids[n:],
        logprobs=delta.logprobs[n:],
        prompt_logprobs=(),
    )


def _again(live: Live) -> TokenRequest:
    """The request with what was emitted; the prompt's log probabilities were told with that."""
    sampling = live.request.sampling
    if live.output:
        sampling = msgspec.structs.replace(sampling, prompt_logprobs=-1)
    return msgspec.structs.replace(
        live.request, sampling=sampling, output=live.output.tobytes(), crashes=live.crashes
    )


def _server_error(message: str, code: str) -> RequestError:
    return RequestError(message, status=500, type="server_error", code=code)


def _quarantined() -> RequestError:
    return _server_error(
        "this request was being computed when the engine died, twice; it is not tried again.",
        "request_quarantined",
    )


def _cancelled() -> RequestError:
    return RequestError(
        "this request was cancelled by the operator of the server.",
        status=409,
        type="server_error",
        code="cancelled_by_operator",
    )


def _lost_tokens(n: int) -> RequestError:
    return _server_error(f"{n} tokens of this answer were lost on the way.", "tokens_lost")


def _text_fault() -> RequestError:
    return _server_error("the tokens of this answer could not be turned into text.", "text_fault")
