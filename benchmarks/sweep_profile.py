"""Values of a machine's profile, searched one after the other over a shortened table.

    python -m benchmarks.sweep_profile --model FOLDER [--budget 20m] [--fp8] [--out FOLDER]
        [--try KEY=A,B ...]

Chunk, captured rows, running requests, share of memory and frontends: each value that was tried is
one server and two workloads (short requests, and long ones, all at once). What is best is kept for
the next field. `--try` names other fields, which take the place of these.
Writes one JSON a profile, `sweep-<profile>.json`, with every trial; profiles/make.py takes the
values and the evidence from there.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from appliance.runtime.plan import graph_sizes
from benchmarks.rows import FP8, NO_CACHE, tiny
from benchmarks.serve_table import arguments_of
from benchmarks.serving import APPLIANCE, DidNotStart, Served, machine

WORKLOADS = (
    "--dataset sharegpt-like --num-prompts 1200",
    "--dataset range:2048-4096,256-512 --num-prompts 150",
)
"""Many short requests, fewer long ones: what is tuned for one must not cost the other. Enough to
fill the pages of one GPU of 80 GB."""
FIELDS: dict[str, tuple[Any, ...]] = {
    "schedule.chunk": (8192, 4096, 16384),
    "engine.memory_fraction": (0.94, 0.96),
    "schedule.beside_filled": (0.6, 0.35, 0.85),
    "schedule.max_running": (2048, 1024, 512),
    "engine.graph_batch_sizes": (2048, 1024, 512),
    "serve.frontends": (2, 1, 4),
}
TINY_FIELDS: dict[str, tuple[Any, ...]] = {"schedule.chunk": (256, 512), "serve.frontends": (1,)}
WORTH = 1.01
"""How many times the score a value must reach to take the place of the one before."""


def setting(field: str, value: Any) -> str:
    """As `--set` takes it; captured rows are told by their largest."""
    if field == "engine.graph_batch_sizes":
        return f"{field}={json.dumps(list(graph_sizes(value)))}"
    return f"{field}={json.dumps(value) if isinstance(value, bool) else value}"


def named(text: str) -> tuple[str, tuple[Any, ...]]:
    """`engine.filter=sort,search` -> the field and its values: numbers, truths or words."""
    field, _, values = text.partition("=")
    return field, tuple(_value(word) for word in values.split(","))


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word


def trial(values: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """One server: output tok/s of each workload, and their geometric mean as the score."""
    options = ["--load-format", "dummy", "--set", NO_CACHE]
    options += ["--set", FP8] if given.fp8 else []
    options += ["--profile", given.profile] if given.profile else []
    for one in [*given.set, *(setting(f, v) for f, v in values.items())]:
        options += ["--set", one]
    began = time.perf_counter()
    found: dict[str, Any] = {"values": values, "score": 0.0, "tok_s": []}
    try:
        served = Served(given.model, options).all_captured()
    except DidNotStart as problem:
        return found | {"problem": str(problem)[-400:]}
    try:
        found["profile"] = served.status.profile
        found["tok_s"] = [measured(served.url, words, given.tiny) for words in WORKLOADS]
        found["score"] = round(math.exp(sum(map(math.log, found["tok_s"])) / len(WORKLOADS)), 1)
    except (subprocess.SubprocessError, ValueError) as problem:
        found["problem"] = str(problem)[-400:]
    finally:
        served.close()
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def measured(url: str, words: str, small: bool) -> float:
    """Output tok/s. SubprocessError when the bench fails, a failed request among it."""
    command = [*APPLIANCE, "bench", "serve", url, *(tiny(words) if small else words).split()]
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=300, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1])["out_tok_s"])


def search(fields: dict[str, tuple[Any, ...]], given: argparse.Namespace) -> list[dict[str, Any]]:
    """Every trial, the one with the best values marked; each field stops when time is up."""
    end = time.monotonic() + given.budget_s
    longest = 0.0
    best = trial({}, given)
    trials = [best]
    for field, values in fields.items():
        for value in values:
            longest = max(longest, trials[-1].get("seconds", 0.0))
            if time.monotonic() + longest > end:
                break
            one = trial({**best["values"], field: value}, given)
            trials.append(one)
            tell(one)
            if one["score"] > best["score"] * WORTH:
                best = one
    best["best"] = True
    return trials


def tell(one: dict[str, Any]) -> None:
    said = one.get("problem") or f"{one['score']:,.0f} ({one['tok_s']})"
    print(f"{one['values']}: {said}", flush=True)


def searched(profile: str, fp8: bool) -> str:
    """Whose values they are: a profile that rounds is never chosen by itself, so a search of it
    begins at the plain one, whose other values it has."""
    return re.sub("-bf16$", "-fp8", profile) if fp8 else profile


def evidence(trials: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    """What profiles/make.py reads. fields: those that were tried, with what is best."""
    best = next(t for t in trials if t.get("best"))
    tried = sorted({field for t in trials for field in t["values"]})
    values = {f: best["values"][f] for f in tried if f in best["values"]}
    if "engine.graph_batch_sizes" in values:
        values["engine.graph_batch_sizes"] = list(graph_sizes(values["engine.graph_batch_sizes"]))
    start = trials[0]["score"]
    here = machine()
    return {
        "profile": searched(best.get("profile", ""), given.fp8),
        "machine": f"{here['gpu']}, torch {here['torch']}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": here["commit"],
        "command": " ".join(["python -m benchmarks.sweep_profile", *sys.argv[1:]]),
        "result": f"{start:,.0f} -> {best['score']:,.0f} output tok/s, geometric mean of "
        f"{len(WORKLOADS)} workloads, one run each",
        "note": f"{len(trials)} trials; the best value of each field was kept for the next",
        "tried": tried,
        "values": values,
        "trials": trials,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    arguments_of(parser)
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--try", dest="fields", action="append", metavar="KEY=A,B")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    found = re.fullmatch(r"(\d+)([smh]?)", given.budget)
    if not found:
        parser.error("--budget is such as 90s or 20m")
    given.budget_s = int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
    usual = TINY_FIELDS if given.tiny else FIELDS
    trials = search(dict(map(named, given.fields)) if given.fields else usual, given)
    told = evidence(trials, given)
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / f"sweep-{told['profile'] or 'none'}.json"
    file.write_text(json.dumps(told, indent=1) + "\n")
    print(f"{told['result']}\n{file}")
    return 0 if any(t["score"] for t in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
