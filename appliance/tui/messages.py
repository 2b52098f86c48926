"""What the poller tells the dashboard. The newest of a kind replaces those still waiting."""

from __future__ import annotations

from typing import Any

from textual.message import Message

from appliance.status import TopSnapshot


class Polled(Message):
    """The supervisor answered."""

    def __init__(self, snapshot: TopSnapshot) -> None:
        super().__init__()
        self.snapshot = snapshot

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Polled)


class Planned(Message):
    """plan.json of the run: every value with where it came from."""

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__()
        self.plan = plan


class Away(Message):
    """The supervisor does not answer. since: monotonic seconds of the first failure in a row."""

    def __init__(self, why: str, since: float) -> None:
        super().__init__()
        self.why = why
        self.since = since

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Away)
