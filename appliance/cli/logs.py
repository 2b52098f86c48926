"""appliance logs: of a live run from its supervisor, of an ended one from its file."""

from __future__ import annotations

import datetime
import re

import click

from appliance import paths
from appliance.cli.output import Output
from appliance.cli.prepare import run_folder
from appliance.client import Client
from appliance.errors import NotRunningError, UsageError
from appliance.supervisor.logs import Filter, read_file

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@click.command()
@click.argument("name", default="default")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines.")
@click.option("-n", "--lines", type=click.IntRange(0), default=200, help="How many lines.")
@click.option("--component", default="", help="supervisor, frontend, engine, engine-0, engine-0.1")
@click.option(
    "--level",
    default="",
    type=click.Choice(["", "debug", "info", "warning", "error"]),
    help="That and worse.",
)
@click.option("--since", metavar="TIME", help="Not before: 10m ago, 14:30, 2026-11-20T14:30:00.")
@click.option("--until", metavar="TIME", help="Not after.")
@click.option("--request", metavar="ID", help="Lines that name this request.")
@click.option("--grep", multiple=True, metavar="TEXT", help="Lines that hold this text.")
@click.pass_obj
def logs(
    out: Output,
    /,
    name: str,
    follow: bool,
    lines: int,
    component: str,
    level: str,
    since: str | None,
    until: str | None,
    request: str | None,
    grep: tuple[str, ...],
) -> None:
    """What the processes of run NAME have said."""
    client = Client(paths.control_socket(run_folder(name)))
    begin, end = moment(since, "--since"), moment(until, "--until")
    holds = (*grep, *([request] if request else []))
    try:
        if follow:
            for line in client.follow_logs(
                lines, component, level, since=begin, until=end, holds=holds
            ):
                out.result(line, {"line": line})
            return
        found = client.logs(
            lines, component, level, since=begin, until=end, holds=holds
        ).splitlines()
    except NotRunningError:
        if follow:
            raise
        path = paths.supervisor_log(name)
        found = read_file(path, lines, Filter(component, level, begin, end, holds))
        if not found and not path.exists():
            raise
        out.note(f"The run has ended; from {path}:")
    for line in found:
        out.result(line, {"line": line})


def moment(text: str | None, option: str) -> str:
    """`10m` (ago), `14:30` (today, here), or an ISO time -> the time that log lines begin with, in
    UTC; empty for None."""
    if text is None:
        return ""
    now = datetime.datetime.now().astimezone()
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])(?: ago)?", text.strip())
    clock = re.fullmatch(r"(\d{1,2}):(\d\d)(?::(\d\d))?", text.strip())
    try:
        if ago:
            at = now - datetime.timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        elif clock:
            hour, minute, second = (int(part or 0) for part in clock.groups())
            at = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
        else:
            at = datetime.datetime.fromisoformat(text.strip())
            at = at if at.tzinfo else at.astimezone()
    except (ValueError, OverflowError) as e:
        raise UsageError(
            f"{option}: '{text}' is no time.", "Write 10m, 14:30, or 2026-11-20T14:30:00."
        ) from e
    utc = at.astimezone(datetime.UTC)
    return utc.strftime("%Y-%m-%dT%H:%M:%S.") + f"{utc.microsecond // 1000:03d}"
