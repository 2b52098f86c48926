"""A supervisor on stand-ins as a process of its own: `drive.py RUN_DIR TOLD`."""

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from supervisor_stage import FAST, StandIns, make_config

from appliance import paths
from appliance.runtime.config import write_config
from appliance.supervisor.claim import RunLock, bind
from appliance.supervisor.daemon import supervise


def main() -> int:
    run = paths.private_dir(Path(sys.argv[1]))
    lock = RunLock.take(run)
    config = make_config(run, tp=2)
    write_config(config, paths.config_file(run))
    commands = StandIns(**json.loads(sys.argv[2]))
    death = asyncio.run(supervise(config, bind("127.0.0.1", 0), commands=commands, limits=FAST))
    lock.release()
    return death.exit_code if death else 0


if __name__ == "__main__":
    sys.exit(main())
