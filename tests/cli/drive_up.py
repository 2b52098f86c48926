"""The command line on stand-ins in place of the runtime: `drive_up.py TOLD WORD…`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "supervisor"))

from supervisor_stage import FAST, StandIns

from appliance.cli.main import run
from appliance.supervisor import daemon, lifecycle


def main() -> int:
    told = json.loads(sys.argv[1])
    daemon.RuntimeCommands = lambda config_file: StandIns(**told)
    lifecycle.Limits = lambda: FAST
    return run(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
