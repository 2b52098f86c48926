"""What the commands of `appliance bench` share: options, the server that is meant, the record."""

from __future__ import annotations

import datetime
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from appliance import address, paths
from appliance.bench import compare, dots, plot, report
from appliance.bench.chart import Chart
from appliance.bench.load import Run
from appliance.bench.workload import DATASETS
from appliance.cli.output import Output
from appliance.client import Client
from appliance.errors import NotFoundError, NotRunningError, UsageError

F = TypeVar("F", bound=Callable[..., Any])
_NAME = re.compile(r"[\w.-]{1,64}")


def key() -> str:
    return os.environ.get("APPLIANCE_API_KEY") or os.environ.get("OPENAI_API_KEY") or ""


def server(target: str | None, url: str | None) -> str:
    """The URL that was given, else that of the named run, else of the one on this machine."""
    if target and url:
        raise UsageError("A server and --url were both given.", "Give one of the two.")
    given = url or target or ""
    if "/" in given or ":" in given or url:
        return address.normal(given) if given.startswith("unix:") else given
    run = given or "default"
    try:
        status = Client(paths.control_socket(paths.runtime_dir() / run)).status()
    except NotRunningError as problem:
        others = address.listening(paths.control_sockets())
        what = f"No run is called {run!r}." if given or others else "Nothing runs on this machine."
        start = f"appliance bench {others[0]}" if others else "appliance up -d"
        raise NotRunningError(
            what, f"{start}\nor name a server: appliance bench http://127.0.0.1:8000"
        ) from problem
    return status.url


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--label {text!r} has no value.", "Write such as --label gpu=H100.")
    return name, value


def extra(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as problem:
        raise UsageError(
            f"--extra-body is no JSON object: {problem}.", """Write such as '{"top_k": 1}'."""
        ) from problem


def id_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isdigit() and high.isdigit()):
        raise UsageError(f"--id-range {text!r} is no range.", "Write such as 300-3000.")
    return int(low), int(high)


def line(row: str, found: dict[str, Any], labels: Sequence[str], **more: Any) -> dict[str, Any]:
    """The object that --append writes."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    command = "appliance " + shlex.join(sys.argv[1:])
    rest = {"gpu": None, **dict(pair(label) for label in labels)}
    return {
        "schema": "appliance.bench/1",
        "row": row,
        "date": now,
        "command": command,
        **rest,
        **more,
        **found,
    }


class Bar:
    """Requests done, redrawn on one line of stderr. total 0: nobody knows how many there are."""

    def __init__(self, out: Output, total: int) -> None:
        self._shown, self._total = out.interactive(), total

    def __call__(self, done: int, failed: int) -> None:
        if self._shown:
            tail = f", {failed} failed" if failed else ""
            of = f"/{self._total}" if self._total else ""
            sys.stderr.write(f"\r{done}{of} requests{tail}\x1b[K")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@dataclass(frozen=True)
class Ending:
    """What becomes of the figures: where they are kept, drawn, and held against a record."""

    keep: tuple[Path, ...]
    pictures: tuple[Path, ...]
    terminal: bool
    old: dict[str, compare.Lines]
    gates: tuple[compare.Gate, ...]

    @classmethod
    def of(cls, given: dict[str, Any]) -> Ending:
        """Raises what is wrong with the options before anything is measured."""
        keep = [given["append"]] if given["append"] else []
        if given["save"]:
            if not _NAME.fullmatch(given["save"]):
                raise UsageError(f"--save {given['save']!r} is no name.", "Use letters and digits.")
            keep.append(paths.bench_record(given["save"]))
        plots = given.get("plots", ())
        odd = [p for p in plots if p != "term" and not p.endswith(".png")]
        if odd:
            raise UsageError(f"--plot {odd[0]!r} is no picture.", "Name a .png file, or term.")
        pictures = tuple(Path(p) for p in plots if p != "term")
        if pictures:
            plot.check()
        against = given["against"]
        if given["gates"] and not against:
            raise UsageError(
                "--fail-on compares with a record.", "Add --against FILE, or use bench compare."
            )
        if against and not given["row"]:
            raise UsageError("--against needs the row to compare with.", "Add --row ID.")
        old = compare.load_rows(against) if against else {}
        here = {r: kept for r, kept in old.items() if r.partition(" ")[0] == given["row"]}
        if against and not here:
            raise NotFoundError(
                f"{against} has no row {given['row']!r}.",
                f"It has: {', '.join(old) or 'none'}.",
                code="APL-NOT-020",
            )
        gates = [compare.Gate.parse(gate) for gate in given["gates"]]
        if against and not gates:
            gates = compare.Gate.regression()
        return cls(
            tuple(keep),
            pictures,
            "term" in plots,
            here,
            tuple(gates),
        )

    def draw(self, out: Output, charts: list[Chart], title: str) -> None:
        if self.terminal and not out.json:
            out.note(dots.draw(charts))
        for path in self.pictures:
            plot.draw(charts, path, title)
            out.note(f"plot written to {path}")

    def finish(self, ctx: click.Context, lines: list[dict[str, Any]], failed: bool) -> None:
        """Keeps the lines and compares them; exit code 1 for failed requests or gates."""
        out: Output = ctx.obj
        for file in self.keep:
            for one in lines:
                report.append(file, one)
        if self.old:
            new: dict[str, compare.Lines] = {}
            for one in lines:
                new.setdefault(compare.row_of(one), []).append(one)
            failed |= tell_comparison(out, compare.compare(self.old, new, list(self.gates)))
        if failed:
            ctx.exit(1)


def tell_comparison(out: Output, found: compare.Comparison) -> bool:
    """What a comparison says beside a result; whether a gate failed."""
    out.note(found.text)
    for note in found.notes:
        out.note(f"note: {note}")
    for failure in found.failures:
        out.warn(f"gate not met: {failure}")
    return bool(found.failures)


def tell(out: Output, run: Run, found: dict[str, Any]) -> bool:
    """Says what went wrong; whether a request failed."""
    for text in report.warnings(found, run.records):
        out.warn(text)
    return bool(found["failed"])


def _all(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


record_options = _all(
    (
        click.option("--row", default="", metavar="ID", help="Name of this run in the record."),
        click.option(
            "--append",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Add the figures to FILE as one JSON line.",
        ),
        click.option("--save", metavar="NAME", help="The same, for `bench compare NAME …`."),
        click.option(
            "--label",
            "labels",
            multiple=True,
            metavar="KEY=VALUE",
            help="More fields of that line, such as gpu=H100.",
        ),
        click.option(
            "--against", metavar="FILE", help="Compare with the last record of the row in FILE."
        ),
        click.option(
            "--fail-on",
            "gates",
            multiple=True,
            metavar="GATE",
            help="With --against, such as 'ttft_ms_p99>+10%'; exit code 1 when it holds.",
        ),
    )
)
"""Options of every command that measures."""

content_options = _all(
    (
        click.option("--seed", default=0, show_default=True, help="Of lengths, ids and arrivals."),
        click.option(
            "--id-range",
            default="300-3000",
            show_default=True,
            metavar="LOW-HIGH",
            help="Token ids of random prompts.",
        ),
        click.option("--extra-body", metavar="JSON", help="More fields of each request."),
    )
)

server_options = _all(
    (
        click.option("--url", metavar="URL", help="Server; default: the run on this machine."),
        click.option("--model", metavar="NAME", help="Default: the first that it lists."),
        click.option(
            "--processes",
            default=0,
            metavar="N",
            help="Sending processes; default: half the cores, at most 4.",
        ),
        click.option(
            "--timeout",
            default=1800.0,
            show_default=True,
            metavar="SECONDS",
            help="For one request.",
        ),
    )
)
"""Options of every command that sends."""

dataset_options = _all(
    (
        click.option(
            "--dataset", default="sharegpt-like", show_default=True, metavar="NAME", help=DATASETS
        ),
        click.option(
            "--num-prompts",
            type=click.IntRange(1),
            metavar="N",
            help="Default 200; prefix: 16 a group; JSON lines: all.",
        ),
        click.option("--input-len", default=1024, show_default=True, help="For random."),
        click.option(
            "--output-len", default=128, show_default=True, help="For random, JSON lines."
        ),
        click.option(
            "--range-ratio",
            default=0.0,
            show_default=True,
            help="random: lengths from this share of the length up to it.",
        ),
        click.option("--text", is_flag=True, help="Send words, not token ids."),
        click.option("--stop-at-eos", is_flag=True, help="Let answers end by themselves."),
        click.option("--temperature", default=0.0, show_default=True),
        click.option(
            "--slo", metavar="LIMITS", help="Goodput under ttft=500ms,tpot=50ms,itl=…,e2e=…."
        ),
        click.option(
            "--plot",
            "plots",
            multiple=True,
            metavar="FILE.png|term",
            help="Draw latencies and tokens over time: as a picture, or here.",
        ),
    )
)
"""What is sent, what is asked of it, and how it is shown."""
