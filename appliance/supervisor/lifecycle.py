"""The state of a run: STARTING, READY, DEGRADED, DRAINING, FAILED, STOPPED. One object owns it.

Everything here happens in one event loop, in its thread; all others ask.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from appliance import paths
from appliance.runtime.config import AT_ENGINE_START, RuntimeConfig, setting
from appliance.status import (
    Beat,
    Change,
    ChildMessage,
    Failed,
    FrontendSnapshot,
    Phase,
    Ready,
    RunState,
    State,
    publish,
    start_words,
)
from appliance.supervisor import devices
from appliance.supervisor.child import Child, Commands, Lifeline, Post, reap_orphans
from appliance.supervisor.devices import Holder
from appliance.supervisor.expect import Basis, StartTimes, remaining
from appliance.supervisor.health import Deaths, Limits, Watch
from appliance.supervisor.lastword import LastWord
from appliance.supervisor.logs import LogBook
from appliance.supervisor.notify import Notifier
from appliance.supervisor.replica import PHASES, Death, Replica, death_of

log = logging.getLogger("appliance.supervisor")

_RETIRE_S = 3.0
"""Seconds an engine that is restarted by hand has for its goodbye."""
_TICK_S = 0.1
_SAID_EVERY_S = 15.0

Kind = str
Watcher = Callable[[Kind, str], None]
"""Told (kind, text) of what people should see: phase, ready, death, restart, reload, drain, failed,
step, stopped, signal."""


class Frontend(Struct):
    """One HTTP process's place; the process in it may change."""

    child: Child
    watch: Watch
    deaths: Deaths
    ready: bool = False


class Lifecycle:
    """Starts, watches, restarts and stops the processes of one run.

    listener: the bound TCP socket that frontends inherit. free: awaited after an engine's end,
    until the GPUs hold nothing of its processes (by pid); what they still do, None without GPUs.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        listener: socket.socket,
        commands: Commands,
        book: LogBook,
        *,
        limits: Limits | None = None,
        watcher: Watcher | None = None,
        free: Callable[[list[int]], Awaitable[list[Holder] | None]] | None = None,
    ) -> None:
        self.config = config
        self.run = Path(config.dir)
        self.state = RunState(at=time.time())
        self.failure: Death | None = None
        self.frontends: dict[int, Frontend] = {}
        self.limits = limits or Limits()
        self.replicas = [
            Replica(i, config.engine.tp, self, self.limits) for i in range(config.engine.replicas)
        ]
        self.restarts = 0
        self.engine_deaths = 0
        self.started = time.monotonic()
        self.started_at = time.time()
        self.ended = asyncio.Event()
        self._listener = listener
        self._commands = commands
        self._book = book
        self._watcher = watcher or (lambda kind, text: None)
        self._free = free
        self._lifeline = Lifeline()
        self._notify = Notifier()
        self._stopping: asyncio.Task[None] | None = None
        self._rolling: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._last_word: LastWord | None = None
        self._closed = False  # no process is started any more
        self._begun_with = {replica.index: config for replica in self.replicas}
        self._is_init = os.getpid() == 1
        self._tasks: set[asyncio.Task[None]] = set()
        self._times = StartTimes(config)
        self._said_at = time.monotonic()

    async def start(self) -> None:
        """Starts every process. What goes wrong shows in `state`."""
        for old in self.run.glob("frontend-*.json"):
            old.unlink(missing_ok=True)
        self._publish()
        for index in range(max(1, self.config.serve.frontends)):
            self._start_frontend(index, Deaths(self.limits))
        for replica in self.replicas:
            self._start_replica(replica)
        self._tasks.add(asyncio.create_task(self._ticks()))

    def stop(self, drain_s: float) -> None:
        """Begins to stop; `ended` is set when all is gone. Again: nothing more happens."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(drain_s))

    def stop_now(self) -> None:
        """As stop, without waiting for anybody."""
        self._hurry.set()
        self.stop(0.0)

    def restart(self, *, rolling: bool = False) -> None:
        """Starts every engine again; live requests are replayed. Not held against the engines.

        rolling: one after the other, each when the one before is ready again; asked for once more
        while it goes on, it does nothing.
        """
        if not rolling:
            for replica in self.replicas:
                self._retire(replica)
        elif self._rolling is None or self._rolling.done():
            self._rolling = asyncio.create_task(self._roll())

    def reloaded(self, config: RuntimeConfig) -> None:
        """These are the settings now; what starts from now on reads them."""
        self.config = config

    def waiting_for_engines(self) -> list[Change]:
        """Settings that an engine does not go by because it began with others."""
        found = []
        for key in sorted(AT_ENGINE_START):
            now = setting(self.config, key)
            before = [setting(begun, key) for begun in self._begun_with.values()]
            found += [Change(key, old, now) for old in before if old != now][:1]
        return found

    async def _roll(self) -> None:
        for replica in self.replicas:
            before = replica.generation
            self._retire(replica)
            while not (replica.ready and replica.generation > before):
                if self.failure is not None or self._stopping is not None:
                    return
                await asyncio.sleep(_TICK_S)

    def _retire(self, replica: Replica) -> None:
        if replica.alive and replica.dying is None:
            replica.retire(Death("restarted by hand", permanent=False, code="APL-RESTART"))
            asyncio.get_running_loop().call_later(
                _RETIRE_S, self._end_late, replica, replica.generation
            )

    def _end_late(self, replica: Replica, generation: int) -> None:
        """Ends what was asked to end and has not."""
        if replica.generation == generation and replica.alive:
            replica.kill()

    def live_requests(self) -> int:
        """As the frontends last said."""
        count = 0
        for index in self.frontends:
            with suppress(OSError, msgspec.DecodeError):
                raw = paths.frontend_snapshot(self.run, index).read_bytes()
                count += msgspec.json.decode(raw, type=FrontendSnapshot).live
        return count

    def said(self, child: Child, message: ChildMessage) -> None:
        if child.post.role == "engine":
            self.replicas[child.post.index].said(child, message)
            return
        frontend = self.frontends.get(child.post.index)
        if frontend is None or frontend.child is not child:
            return
        match message:
            case Phase() | Beat():
                limit = max(message.limit_s, self.limits.frontend_s)
                frontend.watch.heard(time.monotonic(), limit)
            case Ready():
                frontend.watch.heard(time.monotonic(), self.limits.frontend_s)
                frontend.ready = True
                frontend.deaths.ready()
                self._update()
            case Failed():
                pass

    def printed(self, child: Child, line: str) -> None:
        self._book.add(child.post.component, line)

    def ended_frontend(self, child: Child) -> None:
        frontend = self.frontends[child.post.index]
        if frontend.child is not child:
            return
        frontend.ready = False
        self._speak_last()
        if self._stopping is not None or self.failure is not None:
            return
        death = death_of(child, f"frontend {child.post.index}", False)
        self.tell("death", death.message)
        if death.permanent and not self.state.reached_ready:
            self._fail(death)
            return
        delay = frontend.deaths.died(time.monotonic())
        if delay is None:
            self._fail(_too_often(death, frontend.deaths))
            return
        self._later(delay, lambda: self._start_frontend(child.post.index, frontend.deaths))

    def spawn_rank(self, replica: Replica, rank: int) -> Child:
        post = Post("engine", replica.index, rank, replica.generation)
        return Child.spawn(
            post,
            lambda fd: self._commands.engine(replica.index, rank, replica.generation, fd),
            self._lifeline,
            self,
        )

    def ended_child(self, child: Child) -> None:
        if child.post.role == "engine":
            self.replicas[child.post.index].ended(child)
        else:
            self.ended_frontend(child)

    def advanced(self, replica: Replica, message: ChildMessage) -> None:
        if isinstance(message, Ready):
            log.info("engine %d is ready (generation %d)", replica.index, replica.generation)
        if not isinstance(message, Beat):
            self._update()

    def died(self, replica: Replica, death: Death) -> None:
        if self.state.state == "failed" or replica.stopping:
            return
        by_hand = death.code == "APL-RESTART"
        if not by_hand:
            self.engine_deaths += 1
            self.tell("death", death.message)
        self.restarts += 1
        if death.permanent and not self.state.reached_ready:
            self._fail(death)
            return
        delay = 0.0 if by_hand else replica.deaths.died(time.monotonic())
        if delay is None:
            self._fail(_too_often(death, replica.deaths))
            return
        self._update()
        pids = [child.pid for child in replica.ranks]
        self._later(delay, lambda: self._start_replica(replica), pids)

    def _start_frontend(self, index: int, deaths: Deaths) -> None:
        post = Post("frontend", index)
        fd = self._listener.fileno()
        try:
            child = Child.spawn(
                post,
                lambda status: self._commands.frontend(index, fd, status),
                self._lifeline,
                self,
                [fd],
            )
        except OSError as e:
            self._fail(Death(f"frontend {index} cannot be started: {e.strerror}"))
            return
        watch = Watch(time.monotonic(), self.limits.spawn_s)
        if index in self.frontends:
            self.tell("restart", f"frontend {index} is started again")
        self.frontends[index] = Frontend(child, watch, deaths)

    def _start_replica(self, replica: Replica) -> None:
        for left in (paths.ring_file, paths.rendezvous_file):
            for path in self.run.glob(left(self.run, replica.index).name + "*"):
                path.unlink(missing_ok=True)
        self._begun_with[replica.index] = self.config
        try:
            replica.start()
        except OSError as e:
            replica.kill()
            self._fail(Death(f"engine {replica.index} cannot be started: {e.strerror}"))
            return
        if replica.generation > 1:
            what = f"engine {replica.index} is started again"
            self.tell("restart", f"{what} (generation {replica.generation})")
        if self.config.engine.device == "cuda":
            devices.remember(self.run, [c.pid for r in self.replicas for c in r.ranks])
        self._update()

    def _update(self) -> None:
        """Draws the run's state from its parts'."""
        if self._stopping is not None or self.failure is not None:
            return
        engines = all(r.ready and r.dying is None for r in self.replicas)
        doors = all(f.ready for f in self.frontends.values())
        if engines and (doors or self.state.reached_ready):
            first, again = not self.state.reached_ready, self.state.state == "degraded"
            if first:
                self._times.learn(self.replicas[0].phases)
            self._set("ready", phase="", progress=1.0, reached=True)
            if first:
                self.tell("ready", f"ready in {time.monotonic() - self.started:.1f} s")
                self._notify.tell(READY="1", STATUS="serving")
            elif again:
                self.tell("ready", "every engine is there again")
                self._notify.tell(STATUS="serving")
            return
        slow = min(self.replicas, key=_how_far)
        at = slow.phases[-1]
        phase = "warmup" if slow.ready else at.name
        state: State = "degraded" if self.state.reached_ready else "starting"
        changed = (state, phase) != (self.state.state, self.state.phase)
        self._set(state, phase, at.progress, at.detail, self.state.reached_ready)
        if changed:
            self._said_at = time.monotonic()
            if slow.alive:  # the phase that a dead one was in is no news
                self.tell("phase", phase)
            self._notify.tell(STATUS=f"{state}: {phase}")

    def _set(
        self, state: State, phase: str, progress: float, detail: str = "", reached: bool = False
    ) -> None:
        self.state = RunState(
            state=state,
            phase=phase,
            progress=progress,
            detail=detail,
            failure=self.failure.message.partition("\n")[0] if self.failure else "",
            reached_ready=reached or self.state.reached_ready,
            ready_at=self._ready_at() if state in ("starting", "degraded") else 0.0,
            at=time.time(),
        )
        self._publish()

    def remaining_s(self) -> float | None:
        """Of a start that is under way; None where that is not known."""
        if self.state.state not in ("starting", "degraded"):
            return None
        starting = [r for r in self.replicas if r.phases and not r.ready]
        now, expected = time.monotonic(), self._times.expected
        return max((remaining(expected, r.phases, now) or 0.0 for r in starting), default=0) or None

    @property
    def expected_from(self) -> Basis:
        return "" if self.remaining_s() is None else self._times.expected.basis

    def _ready_at(self) -> float:
        rest = self.remaining_s()
        return 0.0 if rest is None else time.time() + rest

    def _say_how_far(self, now: float) -> None:
        """A long phase is told again and again, where nobody watches a bar."""
        if self.state.state not in ("starting", "degraded") or now - self._said_at < _SAID_EVERY_S:
            return
        self._said_at = now
        words = start_words(self.state.phase, self.state.progress, self.remaining_s())
        log.info("still in phase %s", words)
        self._notify.tell(STATUS=f"{self.state.state}: {words}")

    def _publish(self) -> None:
        try:
            publish(paths.run_state(self.run), self.state)
        except OSError as e:
            log.error("the state file cannot be written: %s", e.strerror)

    def _fail(self, death: Death) -> None:
        """Engines go; frontends stay and answer 503 with the cause."""
        if self.failure is not None or self._stopping is not None:
            return
        self.failure = death
        for replica in self.replicas:
            replica.stopping = True
            replica.kill()
        self._set("failed", phase="", progress=0.0)
        self._speak_last()
        self.tell("failed", death.message)
        self._notify.tell(STATUS=f"failed: {self.state.failure}", ERRNO="71")

    def _speak_last(self) -> None:
        """When the run has failed and its last frontend too, this process answers on the port."""
        living = any(f.child.alive for f in self.frontends.values())
        if self.failure is None or self._stopping is not None or living:
            return
        if self._last_word is None:
            self._last_word = LastWord(self._listener, self.failure)
            self._tasks.add(asyncio.create_task(self._last_word.start()))

    def tell(self, kind: Kind, text: str) -> None:
        """Says it in the log and to whoever watches."""
        level = logging.ERROR if kind in ("death", "failed") else logging.INFO
        log.log(level, "%s: %s", kind, text.replace("\n", "; "))
        self._watcher(kind, text)

    def _later(
        self, delay: float, call: Callable[[], None], freed: list[int] | None = None
    ) -> None:
        async def wait_and_call() -> None:
            if freed and self._free is not None:
                await self._free(freed)
            await asyncio.sleep(delay)
            if not self._closed and self.failure is None:
                call()

        task = asyncio.create_task(wait_and_call())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ticks(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            late = now - last - _TICK_S
            last = now
            self._tick(now, late if late > 1.0 else 0.0)

    def _tick(self, now: float, asleep: float) -> None:
        self._notify.alive()
        self._say_how_far(now)
        for replica in self.replicas:
            if asleep:
                replica.forgive(asleep)
            replica.judge(now)
        for frontend in self.frontends.values():
            if asleep:
                frontend.watch.forgive(asleep)
            child = frontend.child
            if child.alive and self._stopping is None:
                child.drain()
                silent = frontend.watch.overdue(now)
                if silent:
                    log.error("%s gave no sign of life for %.1f s", child.post.words, silent)
                    child.signal(signal.SIGKILL)
        children = self.children()
        for child in children:
            child.reap()
        if self._is_init:
            reap_orphans({child.pid for child in children})

    def children(self) -> list[Child]:
        engines = [child for replica in self.replicas for child in replica.ranks]
        return [f.child for f in self.frontends.values()] + engines

    async def _stop(self, drain_s: float) -> None:
        began = time.monotonic()
        if self._last_word is not None:
            self._last_word.close()
        failed = self.failure is not None
        self._set("draining", phase="", progress=0.0)
        doors = [f.child for f in self.frontends.values() if f.child.alive]
        live = 0 if failed else self.live_requests()
        words = f"draining {live} request(s), at most {drain_s:.0f} s"
        self._notify.tell(STOPPING="1", STATUS=words if doors else "stopping")
        if doors:
            self.tell("step", words)
        for child in doors:
            child.signal(signal.SIGTERM)
        patience = drain_s if self.state.reached_ready and not failed else min(drain_s, 1.0)
        if not await self._gone(doors, patience + 0.5):
            left = [c for c in doors if c.alive]
            self.tell("step", f"{len(left)} frontend(s) did not finish in time: SIGKILL")
            for child in left:
                child.signal(signal.SIGKILL)
            await self._gone(doors, None)
        elif doors:
            self.tell("step", f"frontends finished in {time.monotonic() - began:.1f} s")
        await self._stop_engines()
        await self._ask_driver()
        for task in list(self._tasks):
            task.cancel()
        self._set("stopped", phase="", progress=0.0)
        self._notify.tell(STATUS="stopped")
        self.tell("stopped", f"stopped in {time.monotonic() - began:.1f} s")
        self._lifeline.close()
        self.ended.set()

    async def _stop_engines(self) -> None:
        self._closed = True
        engines = [c for r in self.replicas for c in r.ranks if c.alive]
        for replica in self.replicas:
            replica.terminate()
        grace = self.limits.term_s if self.state.reached_ready else 0.5
        if not await self._gone(engines, grace):
            left = [c for c in engines if c.alive]
            names = ", ".join(c.post.words for c in left)
            self.tell("step", f"{names} did not end within {grace:.1f} s of SIGTERM: SIGKILL")
            for child in left:
                child.signal(signal.SIGKILL)
            await self._gone(engines, None)
        elif engines:
            self.tell("step", f"{len(engines)} engine process(es) ended")

    async def _ask_driver(self) -> None:
        """Told as a step: whether the GPUs have their memory back, and who has it if not."""
        pids = [child.pid for replica in self.replicas for child in replica.ranks]
        if self._free is None or not pids or self._hurry.is_set():
            return
        asked = asyncio.ensure_future(self._free(pids))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({asked, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not asked.done():
            asked.cancel()
            return
        held = asked.result()
        if held:
            words = "; ".join(holder.words for holder in held)
            self.tell("step", f"the driver says: {words}\n{devices.cure(held)}")
        elif held is not None:
            self.tell("step", "the driver says that the GPUs have their memory back")
        if not held:
            devices.forget(self.run)

    async def _gone(self, children: list[Child], limit_s: float | None) -> bool:
        """Waits until all have ended. False when time is up, or when we are told to hurry."""
        if not children:
            return True

        async def all_ended() -> bool:
            for child in children:
                await child.exited.wait()
            return True

        ends = asyncio.create_task(all_ended())
        hurry = asyncio.create_task(self._hurry.wait())
        waits = {ends} if limit_s is None else {ends, hurry}
        await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not ends.done():
            ends.cancel()
            return False
        return True


def _how_far(replica: Replica) -> tuple[bool, int, float]:
    at = replica.phases[-1] if replica.phases else None
    place = PHASES.index(at.name) if at else 0
    return (replica.ready, place, at.progress if at else 0.0)


def _too_often(death: Death, deaths: Deaths) -> Death:
    """Cause and count in the first line, which is all that HTTP and `top` show."""
    first, _, rest = death.message.partition("\n")
    message = f"{first}: {deaths.in_words()}, no more tries"
    return Death(
        message + (f"\n{rest}" if rest else ""), death.hint, death.code or "APL-ENG-004", 10
    )
