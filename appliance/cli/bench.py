"""`appliance bench`: measures any OpenAI-compatible server and compares what was measured."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from appliance.cli.late import LateGroup

COMMANDS = {
    "serve": ("bench_serve", "serve", "Send a workload and tell throughput and latency."),
    "latency": (
        "bench_latency",
        "latency",
        "Send one static batch at a time: prefill and decode by themselves.",
    ),
    "offline": (
        "bench_offline",
        "offline_",
        "Give all prompts to MODEL's engine at once, in one process, and tell throughput.",
    ),
    "compare": (
        "bench_compare",
        "compare",
        "Compare records A and B (FILE, FILE#ROW or a saved NAME), row by row.",
    ),
}

_OWN = {
    "-h", "--help", "--json", "-q", "--quiet", "-v", "-vv", "--verbose", "--no-progress", "-y",
    "--yes", "--color", "auto", "always", "never",
}  # fmt: skip
"""Words of the global options, which may stand before the command's."""


class _ServeFirst(LateGroup):
    """`bench URL` and `bench --preset smoke` are short for `bench serve …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = next((i for i, arg in enumerate(args) if arg not in _OWN), None)
        if at is not None and args[at] not in COMMANDS:
            args = [*args[:at], "serve", *args[at:]]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        serve = self.get_command(ctx, "serve")
        found = super().shell_complete(ctx, incomplete)
        known = {item.value for item in found}
        more = serve.shell_complete(click.Context(serve, ctx), incomplete) if serve else []
        return [*found, *(item for item in more if item.value not in known)]


@click.group(cls=_ServeFirst, late=COMMANDS)
def bench() -> None:
    """Measure a server, or compare two measurements.

    \b
    appliance bench --preset smoke
    appliance bench http://127.0.0.1:8000 --dataset sharegpt-like --num-prompts 500 --plot term
    appliance bench latency --batch-size 8
    appliance bench offline MODEL
    appliance bench compare old.jsonl new.jsonl --fail-on 'ttft_ms_p99>+10%'

    Without a command's word, serve is meant. A key, where the server wants one, is read from
    APPLIANCE_API_KEY or OPENAI_API_KEY.
    """
