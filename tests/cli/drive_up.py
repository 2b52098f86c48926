"""The command line on stand-ins in place of the runtime, on a machine of 8 cores:
`drive_up.py TOLD WORD…`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "supervisor"))

from supervisor_stage import FAST, StandIns

from appliance.cli import interrupt, prepare
from appliance.cli.main import run
from appliance.hardware import HardwareSnapshot
from appliance.profiles import pick
from appliance.supervisor import daemon, lifecycle


def main() -> int:
    told = json.loads(sys.argv[1])
    daemon.RuntimeCommands = lambda config_file: StandIns(**told)
    lifecycle.Limits = lambda: FAST
    prepare.detect = pick.detect = lambda: HardwareSnapshot(8, 64 << 30, 60 << 30)
    return run(sys.argv[2:])


if __name__ == "__main__":
    interrupt.answering(main)
