"""How evenly several frontends share connections that come at once, or one after the other.

    python -m benchmarks.frontend_shares [--frontends 4]

Serves the embedded model and opens connections that ask nothing; counts those of each frontend.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from urllib.parse import urlsplit

import psutil

from benchmarks.serving import Served

BURSTS = ((64, 0.0), (512, 0.0), (64, 0.005))


def held(pids: list[int]) -> list[int]:
    """Connections of each process."""
    found = [psutil.Process(pid).net_connections("tcp") for pid in pids]
    return [sum(c.status == psutil.CONN_ESTABLISHED for c in each) for each in found]


async def opened(host: str, port: int, count: int, apart_s: float) -> list[asyncio.StreamWriter]:
    """apart_s: between two of them; 0: all at once."""
    if not apart_s:
        made = [asyncio.open_connection(host, port) for _ in range(count)]
        return [writer for _, writer in await asyncio.gather(*made)]
    writers = []
    for _ in range(count):
        writers.append((await asyncio.open_connection(host, port))[1])
        await asyncio.sleep(apart_s)
    return writers


async def burst(served: Served, pids: list[int], count: int, apart_s: float) -> list[int]:
    place = urlsplit(served.url)
    before = held(pids)
    writers = await opened(place.hostname or "", place.port or 0, count, apart_s)
    await asyncio.sleep(0.5)
    after = held(pids)
    for writer in writers:
        writer.close()
    await asyncio.sleep(0.5)
    return [b - a for a, b in zip(before, after, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frontends", type=int, default=4)
    count = parser.parse_args().frontends
    settings = (f"serve.frontends={count}", "engine.max_total_tokens=4000")
    served = Served("", [word for one in settings for word in ("--set", one)]).all_captured()
    try:
        pids = [p.pid for p in served.status.processes if p.role == "frontend"]
        time.sleep(1.0)
        for connections, apart_s in BURSTS:
            found = asyncio.run(burst(served, pids, connections, apart_s))
            when = f"{apart_s * 1e3:g} ms apart" if apart_s else "at once"
            print(f"{connections} {when}: {' '.join(map(str, found))}")
    finally:
        served.close()


if __name__ == "__main__":
    main()
