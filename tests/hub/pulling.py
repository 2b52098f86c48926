"""How the tests pull: the real client of one source, and a Patience that is soon at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakehub import FakeHub

from appliance.hub.layout import parts_of
from appliance.hub.plan import Plan, SourceChoice, Want, make_plan
from appliance.hub.pull import Progress, Pulled, carry_out
from appliance.hub.source import Patience
from appliance.hub.store import find_model

QUICK = Patience(
    stall_s=1.0, connect_s=2.0, attempts=4, questions=3, first_wait_s=0.01, longest_wait_s=0.05
)


@dataclass
class Puller:
    """Pulls org/tiny through the real client of one source."""

    hub: FakeHub
    source: SourceChoice
    files: dict[str, bytes]
    told: list[Progress] = field(default_factory=list)

    def plan(self, **more: Any) -> Plan:
        return make_plan(Want("org/tiny", source=self.source, **more), QUICK)

    def pull(self, plan: Plan | None = None, jobs: int = 4, patience: Patience = QUICK) -> Pulled:
        return carry_out(plan or self.plan(), patience, jobs, self.told.append)

    def assert_complete(self, folder: Path) -> None:
        """Every byte under its name, nothing half-done beside it."""
        for path, content in self.files.items():
            assert (folder / path).read_bytes() == content, path
        model = find_model("org/tiny")
        assert model.complete and model.folder == folder
        assert not list(parts_of(model.repo))
