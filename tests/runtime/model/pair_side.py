"""One side of a pair over gloo whose direct way is broken, for test_model_links.

FAULT: hang, wrong or end; it is cured by NCCL_P2P_DISABLE, as where direct copies are turned away.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import torch

from appliance.runtime.model.parallel import comm, pairs
from appliance.runtime.model.parallel.links import Trade


def main() -> None:
    fault, pair = sys.argv.pop(1), sys.argv.pop(1)
    torch.set_num_threads(1)
    comm.TRADE_LIMIT_S = 2.0
    at = sys.argv.index("--pair")
    direct = "NCCL_P2P_DISABLE" not in os.environ
    if pair == "-".join(sys.argv[at + 1 : at + 3]) and (direct or fault == "end"):
        own = comm.Group._trade

        def trade(group: comm.Group, peer: int, process_group: Any) -> Trade:
            if fault == "hang" and group._rank == 0:
                threading.Event().wait()
            if fault == "wrong":
                group._rank += 1 - group._rank
            return own(group, peer, process_group)

        if fault == "end":
            raise SystemExit("no device answers")
        comm.Group._trade = trade  # type: ignore[method-assign]
    pairs.main()


main()
