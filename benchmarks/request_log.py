"""What a line of the request log costs: the loop that hands it over, and the thread that writes it.

    python -m benchmarks.request_log --lines 20000

CPU time, so that what else runs on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from appliance.metrics import Registry
from appliance.runtime.api.request_log import RequestLog
from appliance.runtime.wire.text import TextDelta
from appliance.status import RequestRow

_ROW = RequestRow("r", "done", 1237, 1024, 53, 512, 0.7, 0.0003, 0.131, 88.0, "agent", "stop")
_USAGE = {"prompt_tokens": 1237, "prompt_tokens_details": {"cached_tokens": 1024}}
_BODY = json.dumps({"messages": [{"role": "user", "content": "word " * 1000}]}).encode()


def microseconds(mode: str, lines: int) -> tuple[float, float, float]:
    """CPU time of a line in the caller, in the whole process, and bytes of a line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.jsonl"
        dropped = Registry().counter("dropped", "")
        log = RequestLog(
            None if mode == "off" else path,
            content=mode == "content",
            model="org/model",
            dropped=dropped,
            max_bytes=1 << 40,
        )
        mine, whole = 0.0, time.process_time()
        for number in range(lines):
            begun = time.thread_time()
            entry = log.begin(f"request-{number}", "POST", "/v1/chat/completions", "agent")
            entry.rows, entry.usage = [_ROW], lambda: _USAGE
            if entry.content:
                entry.body = _BODY
                for _ in range(53):
                    entry.heard(0, TextDelta(number, "word "))
            log.end(entry, 200, None)
            mine += time.thread_time() - begun
            while log.waiting > 256:  # none is to be dropped
                time.sleep(0.001)
        log.close()
        whole = time.process_time() - whole
        size = path.stat().st_size if path.exists() else 0
        assert not dropped.series, "the writer was overrun: the figure is of fewer lines"
    return mine / lines * 1e6, whole / lines * 1e6, size / lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=20_000)
    lines = parser.parse_args().lines
    for mode in ("off", "on", "content"):
        mine, whole, size = microseconds(mode, lines)
        print(f"{mode:<8} {mine:6.1f} µs in the loop   {whole:6.1f} µs in all   {size:6.0f} bytes")


if __name__ == "__main__":
    main()
