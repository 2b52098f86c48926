"""One engine: its ranks start together, die together and are judged together."""

from __future__ import annotations

import re
import signal
import time
from typing import Any, Protocol, get_args

from msgspec import Struct

from appliance.status import Beat, ChildMessage, Failed, Phase, PhaseName, Ready
from appliance.supervisor.child import Child
from appliance.supervisor.health import Deaths, Limits, Watch, exit_words

PHASES: tuple[PhaseName, ...] = get_args(PhaseName)


_QUIET = re.compile(r"\s|\S+Z (INFO|DEBUG) ")
"""Lines that are no last words: the inside of a traceback, and what is logged on a good day."""


class Death(Struct, frozen=True):
    """Why a part of the run died, for people. permanent: another start would end the same way."""

    message: str
    hint: str = ""
    code: str = ""
    exit_code: int = 10
    permanent: bool = False


PERMANENT = (2, 4, 7, 8, 9)
"""Exit codes that say what is wrong with the request to run, not with the process."""


class PhaseTime(Struct):
    name: str
    started: float
    seconds: float = 0.0
    progress: float = 0.0
    detail: str = ""


class ReplicaOwner(Protocol):
    def spawn_rank(self, replica: Replica, rank: int) -> Child: ...

    def advanced(self, replica: Replica, message: ChildMessage) -> None: ...

    def died(self, replica: Replica, death: Death) -> None:
        """All ranks are gone."""


class Replica:
    """The ranks of one engine. `dying` holds the cause while the last ranks are reaped."""

    def __init__(self, index: int, ranks: int, owner: ReplicaOwner, limits: Limits) -> None:
        self.index = index
        self.ranks: list[Child] = []
        self.generation = 0
        self.ready = False
        self.facts: dict[str, Any] = {}
        self.phases: list[PhaseTime] = []
        self.deaths = Deaths(limits)
        self.dying: Death | None = None
        self.stopping = False
        self._count = ranks
        self._owner = owner
        self._limits = limits
        self._watches: dict[int, Watch] = {}

    def start(self) -> None:
        """Starts the next generation. OSError when the program cannot be run."""
        self.generation += 1
        self.ready, self.dying = False, None
        self.phases = [PhaseTime("spawn", time.monotonic())]
        now = time.monotonic()
        self._watches = {rank: Watch(now, self._limits.spawn_s) for rank in range(self._count)}
        self.ranks = []
        for rank in range(self._count):
            self.ranks.append(self._owner.spawn_rank(self, rank))

    @property
    def alive(self) -> bool:
        return any(child.alive for child in self.ranks)

    def said(self, child: Child, message: ChildMessage) -> None:
        rank = child.post.rank or 0
        if child not in self.ranks:
            return
        now = time.monotonic()
        watch = self._watches[rank]
        match message:
            case Phase():
                watch.heard(now, message.limit_s)
                if rank == 0:
                    self._advance(message, now)
            case Ready():
                watch.heard(now, max(self._limits.serve_s, 3.0))
                if rank == 0:
                    self._end_phase(now)
                    self.ready, self.facts = True, message.facts
                    self.deaths.ready()
                else:
                    watch.off()  # followers answer for themselves only once they have begun to
            case Beat():
                watch.heard(now, message.limit_s)
                if rank == 0 and message.facts:
                    self.facts = {**self.facts, **message.facts}
            case Failed():
                pass
        if rank == 0 or isinstance(message, Failed):
            self._owner.advanced(self, message)

    def ended(self, child: Child) -> None:
        """One rank has ended: so do all, and when the last is gone the owner is told."""
        if child not in self.ranks:
            return
        if self.dying is None and not self.stopping:
            self.dying = death_of(child, f"engine {self.index}", self._count > 1)
            self.kill()
        if not self.alive:
            self.ready = False
            if self.dying is not None:
                self._owner.died(self, self.dying)

    def judge(self, now: float) -> None:
        """Ends all ranks when one has been silent for longer than it said."""
        if self.dying is not None or self.stopping:
            return
        for child in self.ranks:
            if not child.alive:
                continue
            child.drain()
            silent = self._watches[child.post.rank or 0].overdue(now)
            if silent:
                doing = "serving" if self.ready else f"in phase '{self.phases[-1].name}'"
                self.end(
                    Death(
                        f"{child.post.words} gave no sign of life for {silent:.1f} s while {doing}",
                        "Its last log lines: `appliance logs --component engine`.",
                        "APL-ENG-003",
                    )
                )
                return

    def end(self, death: Death) -> None:
        """Ends all ranks for a reason of ours."""
        if self.dying is None:
            self.dying = death
        self.kill()

    def retire(self, death: Death) -> None:
        """Asks all ranks to end, so that rank 0 can say goodbye to the frontends."""
        if self.dying is None:
            self.dying = death
        for child in self.ranks:
            child.signal(signal.SIGTERM)

    def kill(self) -> None:
        for child in self.ranks:
            child.signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.stopping = True
        for child in self.ranks:
            child.signal(signal.SIGTERM)

    def silence(self, now: float) -> float:
        """The largest share of its allowed silence that a rank has used up."""
        return max((watch.share(now) for watch in self._watches.values()), default=0.0)

    def forgive(self, seconds: float) -> None:
        for watch in self._watches.values():
            watch.forgive(seconds)

    def _advance(self, message: Phase, now: float) -> None:
        if self.phases[-1].name != message.name:
            self._end_phase(now)
            self.phases.append(PhaseTime(message.name, now))
        self.phases[-1].progress = message.progress
        self.phases[-1].detail = message.detail

    def _end_phase(self, now: float) -> None:
        self.phases[-1].seconds = now - self.phases[-1].started


def death_of(child: Child, name: str, many: bool) -> Death:
    """What its first exception said, else how it ended and its last line."""
    who = child.post.words if many else name
    failed = child.failed
    if failed is not None:
        return Death(
            failed.message,
            failed.hint,
            failed.code,
            failed.exit_code,
            permanent=failed.exit_code in PERMANENT,
        )
    words = exit_words(child.returncode or 0)
    text = f"{who} {words}"
    if child.returncode == -signal.SIGKILL:
        text += f"\n{child.kill_cause}"
    last = next((line for line in reversed(child.last_lines) if not _QUIET.match(line)), "")
    if last:
        text += f"\nits last words: {last.strip()[:300]}"
    hint = f"`appliance logs --component {child.post.role}` has more."
    if child.killed_for_memory:
        hint = (
            "Give it more memory: a larger limit, or fewer programs beside it;\n"
            "or less to hold: a smaller model, or a shorter --context.\n" + hint
        )
    return Death(text, hint, "APL-ENG-002")
