"""Workloads by name: what people most often want to know of a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """values: options of `bench serve` by parameter name, where the command line gives no other."""

    about: str
    values: dict[str, Any]


PRESETS = {
    "smoke": Preset(
        "whether it answers: 8 short requests, 4 at a time",
        {"dataset": "fixed:32,16", "num_prompts": 8, "max_concurrency": 4},
    ),
    "chat": Preset(
        "conversation: lengths as people write them, 32 at a time",
        {"dataset": "sharegpt-like", "num_prompts": 256, "max_concurrency": 32},
    ),
    "long-prompt": Preset(
        "documents: 2048 to 4096 tokens in, 128 to 256 out, 16 at a time",
        {"dataset": "range:2048-4096,128-256", "num_prompts": 64, "max_concurrency": 16},
    ),
    "max-throughput": Preset(
        "all it can: 1000 requests of 1024 in, 128 out, at once",
        {"dataset": "fixed:1024,128", "num_prompts": 1000},
    ),
    "sla": Preset(
        "the rate it holds with a first token within 500 ms and one every 50 ms after",
        {
            "dataset": "sharegpt-like",
            "num_prompts": 120,
            "plan": "rate=1,2,4,8,16,32",
            "slo": "ttft=500ms,tpot=50ms",
        },
    ),
}
