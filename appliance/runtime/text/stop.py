"""Stop strings that may straddle deltas: an Aho-Corasick automaton over the answer's characters.

Its depth after a character is the length of the longest tail that may still become a stop string,
which is just what has to be held back. Constant work for each character, however many strings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopAutomaton:
    """States are numbers; 0 is the root. Built once for a set of stop strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.moves: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.match: list[str | None] = [None]
        self.fail = [0]
        for stop in stops:
            state = 0
            for character in stop:
                if character not in self.moves[state]:
                    self.moves[state][character] = len(self.moves)
                    self.moves.append({})
                    self.depth.append(self.depth[state] + 1)
                    self.match.append(None)
                    self.fail.append(0)
                state = self.moves[state][character]
            self.match[state] = stop
        self.first = frozenset(self.moves[0])
        self._link()

    def _link(self) -> None:
        queue = deque(self.moves[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self.moves[state].items():
                self.fail[child] = self.next(self.fail[state], character)
                if self.match[child] is None:
                    self.match[child] = self.match[self.fail[child]]
                queue.append(child)

    def next(self, state: int, character: str) -> int:
        while True:
            to = self.moves[state].get(character)
            if to is not None:
                return to
            if state == 0:
                return 0
            state = self.fail[state]


class StopScanner:
    """Follows one answer. The earliest end of any stop string ends it; of several that end at the
    same character the longest counts."""

    def __init__(self, automaton: StopAutomaton, include_stop: bool) -> None:
        self._automaton = automaton
        self._include = include_stop
        self._state = 0
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The text that is safe to show now. When `matched` is set the answer has ended."""
        automaton = self._automaton
        if self._state == 0 and automaton.first.isdisjoint(text):
            return text
        state, buffer = self._state, self._held + text
        start = len(self._held)
        for at, character in enumerate(text, start + 1):
            state = automaton.next(state, character)
            stop = automaton.match[state]
            if stop is not None:
                self.matched, self._held, self._state = stop, "", 0
                return buffer[: at if self._include else at - len(stop)]
        self._state = state
        keep = len(buffer) - automaton.depth[state]
        self._held = buffer[keep:]
        return buffer[:keep]

    def flush(self) -> str:
        """What was held back, when the answer ends for another reason."""
        held, self._held, self._state = self._held, "", 0
        return held
