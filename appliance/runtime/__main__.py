"""python -m appliance.runtime --config FILE --role ROLE …: what the supervisor starts."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.runtime import launch
from appliance.runtime.config import read_config
from appliance.status import Failed, StatusPipe

log = logging.getLogger("appliance.runtime")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m appliance.runtime")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--role", required=True, choices=("frontend", "engine"))
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--listen-fd", type=int, default=-1)
    parser.add_argument("--replica", type=int, default=0)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--generation", type=int, default=0)
    parser.add_argument("--status-fd", type=int, default=-1)
    return parser.parse_args()


def main() -> int:
    """0 when asked to end; else the error's exit code, after it was told to the supervisor."""
    args = _arguments()
    status = StatusPipe(args.status_fd)
    code = _run(args, status)
    if code and args.role == "engine":
        logging.shutdown()
        os._exit(code)  # the device may hang, and an orderly end would wait for it
    return code


def _run(args: argparse.Namespace, status: StatusPipe) -> int:
    try:
        config = read_config(args.config)
        launch.hold_lifeline()
        if args.role == "frontend":
            launch.run_frontend(config, args.index, args.listen_fd, status)
        else:
            launch.run_engine(config, args.replica, args.rank, args.generation, status)
    except ApplianceError as e:
        status.send(Failed(e.message, e.hint, e.code, e.exit_code))
        log.error("%s %s", e.message, e.hint)
        return e.exit_code
    except Exception as e:
        trace = traceback.format_exc()
        status.send(Failed(f"{type(e).__name__}: {e}", "", "APL-ENG-001", 10, trace[-8000:]))
        log.error("%s", trace)
        return 10
    return 0


if __name__ == "__main__":
    sys.exit(main())
