"""How long the help of each command takes, in a process of its own: `help_times.py [RUNS]`.

A table in Markdown: milliseconds from the start of the process to its end.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import click

from appliance.cli.main import group


def words_of(parent: click.Group, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command and those below it."""
    context = click.Context(parent)
    found = []
    for name in parent.list_commands(context):
        command = parent.get_command(context, name)
        found.append((*before, name))
        if isinstance(command, click.Group):
            found += words_of(command, (*before, name))
    return found


def took(words: tuple[str, ...], runs: int) -> list[float]:
    command = [sys.executable, "-m", "appliance", *words, "--help"]
    found = []
    for _ in range(runs):
        begin = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        found.append((time.perf_counter() - begin) * 1000)
    return found


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    every = [(), *words_of(group)]
    took((), 1)  # bytecode is written, files are in memory
    print("| command | least | median | most |\n|---|---|---|---|")
    for words in every:
        found = took(words, runs)
        name = " ".join(("appliance", *words))
        cells = (min(found), statistics.median(found), max(found))
        print(f"| `{name} --help` | {' | '.join(f'{ms:.0f}' for ms in cells)} |", flush=True)
    load = os.getloadavg()[0]
    print(f"\n{len(every)} commands, {runs} runs each, load average {load:.1f}")


main()
