"""Device rows of running requests: page table and last sampled token, by slot."""

from __future__ import annotations

import torch

from appliance.kernels.ops import Ops
from appliance.runtime.engine.inputs import Staging
from appliance.runtime.wire.step import Step


class Slots:
    """page_table int32 [slots + 1, columns], last_token int32 [slots + 1].

    The last slot is `spare`: rows that pad a captured pass use it; its pages are page 0.
    """

    def __init__(self, slots: int, columns: int, ops: Ops, device: torch.device) -> None:
        self.spare = slots
        self.page_table = torch.zeros((slots + 1, columns), dtype=torch.int32, device=device)
        self.last_token = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self._ops = ops

    def apply(self, step: Step, staging: Staging) -> None:
        """Writes the step's page-table changes."""
        if len(step.page_slots):
            slots, columns, pages = staging.send(
                [step.page_slots, step.page_columns, step.page_ids]
            )
            self._ops.write_pages(self.page_table, slots, columns, pages)
