"""One of several ranks that try their links over gloo, for test_model_links.

    python link_rank.py MEETING RANKS RANK FAULT A B

FAULT: none; hang: A never sends to B; wrong: A sends other bytes to B. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from appliance.errors import HardwareError
from appliance.runtime.model.parallel import comm
from appliance.runtime.model.parallel.links import Trade
from appliance.runtime.model.parallel.mesh import Mesh


class Faulty(comm.Group):
    fault, a, b = "none", -1, -1

    def _trade(self, peer: int, group: Any) -> Trade:
        bad = (self._rank, peer) == (self.a, self.b)
        if bad and self.fault == "hang":
            threading.Event().wait()
        if bad and self.fault == "wrong":
            self._rank += 1
            try:
                return super()._trade(peer, group)
            finally:
                self._rank -= 1
        return super()._trade(peer, group)


def main() -> None:
    meeting, ranks, rank, fault, a, b = sys.argv[1:]
    torch.set_num_threads(1)
    comm.TRADE_LIMIT_S = 2.0
    Faulty.fault, Faulty.a, Faulty.b = fault, int(a), int(b)
    group = Faulty(Mesh(int(rank), int(ranks)), torch.device("cpu"), Path(meeting))
    try:
        told: dict[str, Any] = group.try_links()
    except HardwareError as e:
        told = {"code": e.code, "message": e.message, "hint": e.hint}
    print(json.dumps(told), flush=True)
    os._exit(0)


main()
