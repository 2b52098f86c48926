"""python -m appliance: the command line, which hears Ctrl-C before it is loaded."""

from __future__ import annotations

import sys

from appliance.cli import interrupt


def main() -> None:
    def command() -> int:
        from appliance.cli.main import run

        return run(sys.argv[1:])

    interrupt.answering(command)


if __name__ == "__main__":
    main()
