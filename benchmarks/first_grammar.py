"""How long the first answer under a JSON schema takes after a start, and the ones after it.

    python -m benchmarks.first_grammar [--after SECONDS] [--rounds N]

Starts the embedded model anew for each round, waits, then asks for three answers of a few tokens,
each under a schema of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

SCHEMAS = [
    {"type": "object", "properties": {name: {"type": "integer", "minimum": 0, "maximum": 9}},
     "required": [name]}
    for name in ("one", "two", "three")
]  # fmt: skip


def ask(url: str, schema: dict[str, object]) -> float:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body = {"messages": [{"role": "user", "content": "A number?"}], "max_tokens": 16,
            "response_format": form}  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    begin = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        json.load(answer)
    return time.perf_counter() - begin


def round_of(after_s: float) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="apl") as home:
        own = {f"APPLIANCE_{n}_DIR": f"{home}/{n.lower()}" for n in ("STATE", "RUNTIME", "CONFIG")}
        command = [sys.executable, "-m", "appliance"]
        run = {"env": os.environ | own, "check": True, "capture_output": True}
        subprocess.run([*command, "up", "--port", "0", "-d", "--wait=120"], **run)
        try:
            shown = subprocess.run([*command, "status", "--json"], **run)
            url = json.loads(shown.stdout)["url"]
            time.sleep(after_s)
            return [ask(url, schema) for schema in SCHEMAS]
        finally:
            subprocess.run([*command, "down", "--now"], **(run | {"check": False}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--after", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"{Path(__file__).stem}: {given.after:g} s after the start, seconds of each answer")
    for _ in range(given.rounds):
        print("  ".join(f"{s:7.3f}" for s in round_of(given.after)), flush=True)


if __name__ == "__main__":
    main()
