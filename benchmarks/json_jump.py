"""What jump-forward spares: JSON records of the embedded model, with and without it.

    python -m benchmarks.json_jump [--requests 16] [--concurrency 1 8] [--model FOLDER]
                                   [--set KEY=VALUE ...]

The same schemas and prompts, greedy, one engine in this process for each way, both kept and asked
in turn. Steps are forward passes. The answers of both ways are checked to be whole JSON; they need
not be the same: where text is forced, it is written in the tokens the tokenizer would choose.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from appliance.runtime.offline import Engine
from appliance.runtime.wire.request import Grammar

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 12},
        "last_name": {"type": "string", "maxLength": 12},
        "age_in_years": {"type": "integer", "minimum": 0, "maximum": 120},
        "department": {"enum": ["engineering", "sales", "support", "management"]},
        "is_manager": {"type": "boolean"},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 16},
                "city": {"type": "string", "maxLength": 12},
                "country_code": {"enum": ["DE", "FR", "US", "JP"]},
            },
            "required": ["street", "city", "country_code"],
        },
    },
    "required": [
        "first_name", "last_name", "age_in_years", "department", "is_manager", "address",
    ],
}  # fmt: skip
CALL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"const": "get_weather"},
        "arguments": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "maxLength": 16},
                "temperature_unit": {"enum": ["celsius", "fahrenheit"]},
                "include_forecast": {"type": "boolean"},
            },
            "required": ["location", "temperature_unit", "include_forecast"],
        },
    },
    "required": ["name", "arguments"],
}
TASKS = (("An employee as JSON: ", PERSON), ("Call the tool for the weather in Paris: ", CALL))


def measure(engine: Engine, requests: int, together: int) -> tuple[int, int, float]:
    """(steps, tokens, seconds)"""
    work = [TASKS[i % len(TASKS)] for i in range(requests)]
    steps = engine.scheduler.stats().steps
    tokens, begin = 0, time.perf_counter()
    for at in range(0, requests, together):
        part = work[at : at + together]
        answers = engine.generate(
            [f"{i + at}. {prompt}" for i, (prompt, _) in enumerate(part)],
            [
                {
                    "max_tokens": 300,
                    "temperature": 0.0,
                    "grammar": Grammar("json_schema", json.dumps(schema)),
                }
                for _, schema in part
            ],
        )
        for answer in answers:
            json.loads(answer.text)
            tokens += len(answer.ids)
    seconds = time.perf_counter() - begin
    return engine.scheduler.stats().steps - steps, tokens, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    extra = {k: json.loads(v) for k, _, v in (s.partition("=") for s in asked.set)}
    ways = {
        name: Engine(asked.model, {**extra, "schedule.jump_forward": jump})
        for name, jump in (("plain", False), ("jump", True))
    }
    try:
        for engine in ways.values():
            measure(engine, len(TASKS), 1)
        for together in asked.concurrency:
            found: dict[str, list[tuple[int, int, float]]] = {name: [] for name in ways}
            for _ in range(asked.rounds):
                for name, engine in ways.items():
                    found[name].append(measure(engine, asked.requests, together))
            told = {}
            for name, rows in found.items():
                steps, tokens, seconds = (
                    statistics.median(column) for column in zip(*rows, strict=True)
                )
                told[name] = steps, seconds
                print(
                    f"{together:3} at once, {name:5}: {steps:6.0f} steps {tokens:6.0f} tokens "
                    f"{seconds:7.3f} s"
                )
            fewer, faster = (p / j for p, j in zip(told["plain"], told["jump"], strict=True))
            print(f"{together:3} at once: {fewer:.2f} x fewer steps, {faster:.2f} x faster")
    finally:
        for engine in ways.values():
            engine.close()


if __name__ == "__main__":
    main()
