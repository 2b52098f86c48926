"""python -m appliance.supervisor RUN_DIR."""

import sys

from appliance.supervisor.daemon import main

if __name__ == "__main__":
    sys.exit(main())
