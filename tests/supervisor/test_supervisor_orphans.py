"""As the first process of a container: what dead children leave behind is taken note of."""

from __future__ import annotations

import subprocess
import sys

SCENE = """
import ctypes, os, subprocess, sys, time
from appliance.supervisor.child import reap_orphans

PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
parent = "import subprocess, sys; subprocess.Popen(['sleep', '0.1']); sys.exit(3)"
child = subprocess.Popen([sys.executable, "-c", parent])
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
assert reap_orphans({child.pid}) == 0, "a child of ours is left to its owner"
assert child.wait() == 3
end = time.monotonic() + 30
while not reap_orphans(set()):
    assert time.monotonic() < end
    time.sleep(0.02)
assert reap_orphans(set()) == 0, "no child is left"
"""


def test_orphans_are_reaped_and_children_are_not() -> None:
    done = subprocess.run([sys.executable, "-c", SCENE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
