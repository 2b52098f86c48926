"""The dashboard on this terminal over a socket: what `appliance top` does.

``drivetop.py SOCKET [--inline]``
"""

import sys
from pathlib import Path

from appliance.client import Client
from appliance.tui import app

if __name__ == "__main__":
    app.run(Client(Path(sys.argv[1])), interval=0.25, inline="--inline" in sys.argv)
    print("left the dashboard", flush=True)
