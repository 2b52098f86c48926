"""Snapshots made by hand, and a control socket that serves them.

``python fakecontrol.py SOCKET`` serves the sample until stdin ends.
"""

from __future__ import annotations

import math
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import msgspec

from appliance.status import RequestRow, TopSnapshot

ESCAPE = "\x1b[2J\x1b]0;owned\x07[bold]\u202e\r\nrow"


def request(number: int, **more: object) -> RequestRow:
    fields: dict[str, object] = {
        "id": f"req-{number:04d}",
        "phase": "decode",
        "prompt_tokens": 1200 + number,
        "cached_tokens": 900,
        "output_tokens": 40 + number,
        "max_tokens": 512,
        "age_s": float(number),
        "queue_s": 0.0,
        "ttft_s": 0.12,
        "tok_s": 88.0 - number,
        "client": "open-webui" if number % 2 else "key:team-a",
    }
    return RequestRow(**(fields | more))  # type: ignore[arg-type]


def snapshot(gpus: int = 2, requests: int = 8, **more: object) -> TopSnapshot:
    """A run that is busy, as the dashboard's drawing shows it."""
    fields: dict[str, object] = {
        "url": "http://127.0.0.1:8000",
        "state": "ready",
        "uptime_s": 7980.2,
        "model": {"id": "meta-llama/Llama-3.1-8B-Instruct", "dtype": "bf16"},
        "profile": {"name": "h100x2-bf16", "overrides": {}},
        "throughput": {"gen_tok_s": 11263.4, "prompt_tok_s": 48120.0, "req_s": 7.4},
        "queue": {"running": 58, "waiting": 4, "max_running": 256},
        "kv": {"used_tokens": 4.47e6, "total_tokens": 6.3e6, "ratio": 0.71},
        "prefix_cache": {"hit_ratio_60s": 0.83, "hit_ratio_total": 0.61},
        "latency_60s": {
            "ttft_s": {"p50": 0.142, "p99": 0.91},
            "itl_s": {"p50": 0.0071, "p99": 0.034},
        },
        "gpus": [
            {"index": i, "name": "H100", "util": 0.91, "mem_used_bytes": 73443000000,
             "mem_total_bytes": 85899345920, "power_w": 612.0, "power_limit_w": 700.0,
             "temp_c": 63, "sm_mhz": 1905, "throttle": ["power"] if i else []}
            for i in range(gpus)
        ],
        "cpu": {"util": 0.4, "mem_used_bytes": 2**33, "mem_total_bytes": 2**35, "load1": 1.5},
        "requests": [request(i) for i in range(requests)],
        "alerts": [{"code": "KV_HIGH", "level": "warn", "message": "KV cache above 70 % for 5 min",
                    "fix": "lower --max-running"}],
        "history": {
            "gen_tok_s": [9000 + 2000 * math.sin(i / 9) for i in range(200)],
            "kv_ratio": [0.5] * 200,
        },
        "errors_60s": {"4xx": 2.0, "5xx": 1.0, "cancelled": 0.0},
        "power": {"watts": 1220.0, "tokens_per_joule": 9.23, "energy_j": 7.2e6},
        "finished": [request(90, phase="done", finish="stop")],
        "distributions_60s": {"ttft_s": {"bounds": [0.1, 0.25, 0.5], "counts": [9, 70, 20, 1]}},
        "engines": [{"replica": 0.0, "generation": 1.0, "connected": 1.0, "running": 58.0}],
        "cache_60s": {"hit_tokens": 9e5, "query_tokens": 1.2e6, "evicted_tokens": 0.0},
        "log_tail": ["2026-11-20T12:00:01.000Z INFO    frontend-0 request finished",
                     "2026-11-20T12:00:02.000Z WARNING engine-0 two rows were retracted"],
    }  # fmt: skip
    return TopSnapshot(**(fields | more))  # type: ignore[arg-type]


def hostile() -> TopSnapshot:
    """Every string from outside tries to steer the terminal or the markup."""
    return msgspec.structs.replace(
        snapshot(),
        url="http://h" + ESCAPE,
        model={"id": ESCAPE},
        profile={"name": "[red]" + ESCAPE},
        phase=ESCAPE,
        detail=ESCAPE,
        state="starting",
        requests=[
            request(0, id=ESCAPE, client=ESCAPE),
            request(1, id="[/bold]" + "長い名前" * 9),
        ],
        finished=[request(2, phase="done", id="b" + ESCAPE, finish=ESCAPE)],
        alerts=[{"code": "X", "level": ESCAPE, "message": ESCAPE, "fix": ESCAPE, "since": ESCAPE}],
        gpus=[{"index": ESCAPE, "name": ESCAPE, "throttle": [ESCAPE],
               "processes": [{"pid": 7, "name": ESCAPE, "memory_bytes": 9, "ours": False}]}],
        log_tail=[ESCAPE, "[link=file:///etc/passwd]x[/link]"],
    )  # fmt: skip


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    shown: TopSnapshot
    posted: list[tuple[str, bytes]]


class _Reply(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        body = msgspec.json.encode(self.server.shown)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        self.server.posted.append((self.path, self.rfile.read(length)))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return "local"


@contextmanager
def serving(path: Path, shown: TopSnapshot) -> Iterator[_Server]:
    server = _Server(str(path), _Reply)
    server.shown, server.posted = shown, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        path.unlink()


if __name__ == "__main__":
    with serving(Path(sys.argv[1]), snapshot()):
        print("serving", flush=True)
        sys.stdin.read()
