"""The number on the device that tells kernels how many multiprocessors to take."""

from __future__ import annotations

import torch

from appliance.kernels.multiprocessors import Share


def test_what_is_taken_is_written_where_runs_read_it() -> None:
    share = Share(torch.device("cpu"), 132, 40)
    place, seen = share.taken.data_ptr(), []
    for room in (False, True, True, False):
        share.leave_room(room)
        seen.append(int(share.taken))
    assert seen == [132, 40, 40, 132]
    assert share.taken.data_ptr() == place and share.taken.dtype is torch.int32
